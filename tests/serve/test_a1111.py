"""AUTOMATIC1111's API at /sdapi/v1: what is mapped, what is told, and what is refused."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from serving import client_of, png, png_of, start_and_mask

from sdturbo.errors import InvalidRequest
from sdturbo_serve import Settings, create_app
from sdturbo_serve.a1111.bodies import ImageToImage, TextToImage
from sdturbo_serve.a1111.files import settings_of, text_of
from sdturbo_serve.a1111.jobs import Job, Jobs
from sdturbo_serve.a1111.mapping import mapped
from sdturbo_serve.picture import QueuedPicture

TEXT, IMAGE = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
SIZES = ((512, 512), (512, 768))


@pytest.fixture(scope="module")
def a1111(bare):
    with client_of(bare, a1111=True) as client:
        yield client


def in_base64(data):
    return base64.b64encode(data).decode()


def told(**fields):
    kind = ImageToImage if "denoising_strength" in fields else TextToImage
    return mapped(kind(**fields), SIZES, ("fake",)).not_honoured


def test_without_the_flag_there_is_no_such_api(client):
    assert client.post(TEXT, json={"prompt": "x"}).status_code == 404
    assert client.get("/sdapi/v1/options").status_code == 404
    with pytest.raises(InvalidRequest, match="--a1111"):
        Settings(api_auth=("user:pass",))
    with pytest.raises(InvalidRequest, match="name:password"):
        Settings(a1111=True, api_auth=("user",))


@pytest.mark.parametrize("metadata", [True, False])
def test_the_options_say_whether_files_carry_their_parameters(bare, metadata):
    with client_of(bare, a1111=True, metadata=metadata) as client:
        assert client.get("/sdapi/v1/options").json()["enable_pnginfo"] is metadata


def test_open_webuis_requests_work(bare):
    """As its router `images.py` sends them, with an empty name and password."""
    with client_of(bare, a1111=True) as client:
        client.headers["Authorization"] = "Basic "
        options = client.get("/sdapi/v1/options").json()
        (model,) = client.get("/sdapi/v1/sd-models").json()
        assert options["sd_model_checkpoint"] == model["title"]
        assert client.post("/sdapi/v1/options", json=options).status_code == 200
        assert client.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "dreams"}).status_code == 404
        body = {"prompt": "a fox", "batch_size": 1, "width": 512, "height": 512, "steps": 50, "negative_prompt": "x"}
        body |= {"cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "scheduler": "Karras"}
        answer = client.post(TEXT, json=body).json()
        assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (64, 64)
        words = json.loads(answer["info"])["sdturbo"]["not_honoured"]
        assert set(words) == set(body) - {"prompt", "batch_size", "width", "height"} | {"size"}


def test_every_field_may_be_null(a1111):
    body = dict.fromkeys([*TextToImage.model_fields, "sampler_name", "alwayson_scripts"])
    answer = a1111.post(TEXT, json=body)
    assert answer.status_code == 200
    assert json.loads(answer.json()["info"])["sdturbo"]["not_honoured"] == {}
    body = dict.fromkeys(ImageToImage.model_fields) | {"init_images": [in_base64(png())]}
    assert a1111.post(IMAGE, json=body).status_code == 200


def test_two_requests_without_a_seed_differ(a1111):
    seeds = {json.loads(a1111.post(TEXT, json={"seed": -1}).json()["info"])["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("steps", "strength", "drawn"),
    [(20, 0.75, (4, 0.75)), (1, 0.75, (2, 0.75)), (1, 1.0, (1, 1.0)), (20, 0.1, (4, 0.25)), (2, 0.0, (4, 0.25)),
     (3, 0.5, (3, 0.5)), (2, 0.3, (4, 0.3)), (None, None, (2, 0.75))],
)  # fmt: skip
def test_steps_and_strength_become_those_that_draw_something(steps, strength, drawn):
    plan = mapped(ImageToImage(steps=steps, denoising_strength=strength), SIZES, ())
    assert (plan.steps, plan.strength) == drawn
    assert ("steps" in plan.not_honoured) == (steps not in (None, drawn[0]))
    assert ("denoising_strength" in plan.not_honoured) == (strength not in (None, drawn[1]))


def test_what_changes_nothing_is_told_and_what_is_off_is_not():
    off = {
        "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "subseed": -1, "subseed_strength": 0, "cfg_scale": 1.0,
        "styles": [], "restore_faces": None, "sampler_name": "Euler", "override_settings": {}, "script_args": [],
        "alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [False]}}, "s_noise": 1, "script_name": "",
    }  # fmt: skip
    assert told(**off) == {}
    on = {
        "enable_hr": True, "hr_scale": 2, "subseed_strength": 0.5, "cfg_scale": 7, "styles": ["x"], "tiling": True,
        "sampler_name": "DDIM", "alwayson_scripts": {"ControlNet": {"args": [{"model": "canny"}]}},
        "script_name": "x/y/z plot", "negative_prompt": "dogs", "unheard_of": 1,
    }  # fmt: skip
    assert set(told(**on)) == set(on)
    assert set(told(denoising_strength=0.5, mask="x", inpainting_fill=0, mask_blur=20)) == {
        "inpainting_fill",
        "mask_blur",
    }
    assert told(denoising_strength=0.5, inpainting_fill=0, mask_blur=20) == {}
    assert set(told(denoising_strength=0.5, include_init_images=True)) == {"include_init_images"}
    assert told(denoising_strength=0.5, include_init_images=False) == {}
    assert told(override_settings={"sd_model_checkpoint": "fake"}) == {}
    assert set(told(override_settings={"sd_model_checkpoint": "dreams"})) == {"override_settings.sd_model_checkpoint"}
    assert told(prompt="a (red:1.3) fox")["prompt"] == "weights such as (red:1.3) are read as text"
    assert told(prompt="a (red) fox: see") == {}
    assert len(told(**{f"unheard_of_{i}": 1 for i in range(100)})) == 20


def test_the_nearest_size_is_drawn():
    for asked, drawn in {
        (512, 512): SIZES[0],
        (1024, 1024): SIZES[0],
        (576, 1024): SIZES[1],
        (512, 768): SIZES[1],
    }.items():
        plan = mapped(TextToImage(height=asked[0], width=asked[1]), SIZES, ())
        assert plan.size == drawn
        assert ("size" in plan.not_honoured) == (asked != drawn)


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (TEXT, {"prompt": "a <lora:x:1> fox"}, "prompt"),
        (TEXT, {"prompt": "a <hypernet:x> fox"}, "prompt"),
        (TEXT, {"prompt": "a\0b"}, "prompt"),
        (TEXT, {"batch_size": 65}, "batch_size"),
        (TEXT, {"batch_size": 9, "n_iter": 9}, "n_iter"),
        (TEXT, {"seed": -2}, "seed"),
        (TEXT, {"steps": 0}, "steps"),
        (TEXT, {"width": "wide"}, "width"),
        (IMAGE, {}, "init_images"),
        (IMAGE, {"init_images": []}, "init_images"),
        (IMAGE, {"init_images": [in_base64(png())] * 2}, "init_images"),
        (IMAGE, {"init_images": ["http://example.org/x.png"]}, "init_images"),
        (IMAGE, {"init_images": [in_base64(png(6000, 5000))]}, "init_images"),
        (IMAGE, {"init_images": [in_base64(png())], "mask": in_base64(png(colour=(0, 0, 0)))}, "mask"),
        (IMAGE, {"init_images": [in_base64(png())], "denoising_strength": 1.5}, "denoising_strength"),
        ("/sdapi/v1/png-info", {"image": "no base64"}, "image"),
        ("/sdapi/v1/png-info", {"image": in_base64(b"no image")}, "image"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(a1111, route, body, param):
    answer = a1111.post(route, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_images_may_be_larger_than_other_json(a1111):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    body = {"init_images": ["data:image/png;base64," + in_base64(png_of(noise))]}
    assert len(body["init_images"][0]) > 2**20
    assert a1111.post(IMAGE, json=body).status_code == 200
    assert a1111.post(TEXT, json={"x": "y" * 17 * 2**20}).status_code == 413


def test_images_may_be_as_large_where_another_application_mounts_the_server(bare):
    inner = create_app(bare, Settings(a1111=True))
    outer = FastAPI(lifespan=lambda _: inner.router.lifespan_context(inner))
    outer.mount("/pictures", inner)
    with TestClient(outer) as client:
        answer = client.post("/pictures/sdapi/v1/options", json={"x": "y" * 2**21})
        assert (answer.status_code, list(answer.json()["not_honoured"])) == (200, ["x"])
        assert client.post("/pictures/v1/images/generations", json={"x": "y" * 2**21}).status_code == 413


def test_progress_and_interrupt_use_the_event_loops_thread_and_look_once(bare):
    """An asyncio.Event is no tool for threads, and the oldest request may end between two looks."""

    class Watched(Jobs):
        looks = 0

        @property
        def current(self):
            asyncio.get_running_loop()  # raises in a worker thread
            self.looks += 1
            return super().current

    with client_of(bare, a1111=True) as client:
        client.app.state.jobs = jobs = Watched()
        assert client.get("/sdapi/v1/progress").status_code == 200
        assert jobs.looks == 1
        job = Job([QueuedPicture("x", 1, 1)])
        with jobs._under_way(job):
            assert client.post("/sdapi/v1/interrupt").status_code == 200
        assert jobs.looks == 2
        assert job.interrupted.is_set()


@pytest.mark.parametrize("depth", [50, 200, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("field", ["alwayson_scripts", "unheard_of", "override_settings"])
def test_values_nested_deeply_are_told_or_refused(a1111, depth, opening, closing, field):
    json_text = f'{{"prompt": "x", "{field}": {{"a": {opening * depth}1{closing * depth}}}}}'
    for route in (TEXT, "/sdapi/v1/options"):
        answer = a1111.post(route, content=json_text, headers={"Content-Type": "application/json"})
        assert answer.status_code == (200 if depth == 50 else 400)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', "9" * 4000, '["\\ud800", NaN]'])
@pytest.mark.parametrize("name", ["cfg_scale", "unheard_of", "\\ud800", "override_settings"])
def test_values_that_no_answer_can_repeat_do_no_harm(bare, name, value):
    with client_of(bare, a1111=True, lenient=True) as client:
        for route in (TEXT, "/sdapi/v1/options", "/v1/images/generations"):
            text = f'{{"prompt": "x", "{name}": {value}}}'
            answer = client.post(route, content=text, headers={"Content-Type": "application/json"})
            may_be_refused = name == "\\ud800" or (route, name) == (TEXT, "override_settings")
            assert answer.status_code in ((200, 400) if may_be_refused else (200,)), answer.text


def test_an_opaque_part_of_a_mask_is_drawn_anew_and_a_see_through_image_is_white(a1111):
    start, mask = start_and_mask()
    mask[..., 3] = 255 - mask[..., 3]
    body = {
        "init_images": [in_base64(png_of(start))],
        "mask": in_base64(png_of(mask)),
        "denoising_strength": 1,
        "seed": 1,
    }
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(a1111.post(IMAGE, json=body).json()["images"][0]))))
    assert np.array_equal(picture[:, 32:], start[:, 32:])
    assert (picture[:, :16] != start[:, :16]).any(axis=2).mean() > 0.9
    see_through = png_of(np.zeros((64, 64, 4), np.uint8))
    pictures = [
        a1111.post(IMAGE, json={"init_images": [in_base64(data)], "seed": 1, "denoising_strength": 0.5}).json()[
            "images"
        ]
        for data in (see_through, png(colour=(255, 255, 255)))
    ]
    assert pictures[0] == pictures[1]


def test_images_are_not_sent_if_they_are_not_wanted(a1111):
    answer = a1111.post(TEXT, json={"prompt": "x", "seed": 3, "send_images": False}).json()
    assert answer["images"] == []
    assert json.loads(answer["info"])["seed"] == 3


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_text_of_every_format_is_read_back(a1111, output_format):
    body = {"prompt": "a fox", "seed": 3, "output_format": output_format}
    file = a1111.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    answer = a1111.post("/sdapi/v1/png-info", json={"image": file}).json()
    assert answer["parameters"]["Prompt"] == "a fox"
    assert answer["parameters"]["Seed"] == "3"
    assert answer["items"]["parameters"] == answer["info"]


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "a fox, größer".encode("utf-16-be"),
        b"ASCII\0\0\0" + "a fox, größer".encode(),
        bytes(8) + "a fox, größer".encode(),
    ],
)
def test_a_comment_is_read_in_the_code_that_it_names(comment):
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    assert text_of(file.getvalue()) == "a fox, größer"


def test_a_file_of_another_kind_is_refused_by_its_size_alone():
    with pytest.raises(InvalidRequest) as refused:
        text_of(b"no image")
    assert str(refused.value) == "Got 8 bytes. Expected an image as PNG, JPEG or WEBP."


def test_the_parts_of_automatics_own_text():
    text = (
        'a fox\nin snow\nNegative prompt: dogs\nSteps: 20, Sampler: DPM++ 2M, Lora hashes: "a: 1, b: 2", Size: 512x512'
    )
    parts = settings_of(text)
    assert (parts["Prompt"], parts["Negative prompt"], parts["Size"]) == ("a fox\nin snow", "dogs", "512x512")
    assert parts["Lora hashes"] == "a: 1, b: 2"
    assert settings_of("") == {}
    assert settings_of("a fox: red") == {"Prompt": "a fox: red"}


@pytest.mark.parametrize("filler", ["a", " ", "a ", 'a: "'])
def test_a_text_without_settings_is_read_in_linear_time(filler):
    """Names and the line are bounded, so text that looks like the start of a name costs no search from each character."""
    megabyte = "x" + filler * (2**20 // len(filler)) + "x"
    assert settings_of(f"a fox\nSteps: 4, {megabyte}") == {"Prompt": f"a fox\nSteps: 4, {megabyte}"}
    assert settings_of(megabyte) == {"Prompt": megabyte}
    below_the_bound = "x" + filler * (9000 // len(filler)) + "x"
    assert settings_of(f"a fox\nSteps: 4, {below_the_bound}")["Steps"] == "4"


def test_a_stranger_is_turned_away_before_the_body_is_read(bare):
    with client_of(bare, a1111=True, api_auth=("user:pass",)) as client:
        login, json_type = {"Authorization": "Basic " + in_base64(b"user:pass")}, {"Content-Type": "application/json"}
        for route in (TEXT, IMAGE, "/sdapi/v1/png-info", "/sdapi/v1/options"):
            assert client.post(route, content=b"{", headers=json_type).status_code == 401
            assert client.post(route, content=b"{", headers=json_type | login).status_code == 400


def test_a_key_opens_it_too_and_neither_opens_the_others_rooms(bare):
    with client_of(bare, a1111=True, api_keys=("correct-horse",), api_auth=("user:pass",)) as client:
        login, key = {"Authorization": "Basic " + in_base64(b"user:pass")}, {"Authorization": "Bearer correct-horse"}
        for headers, status in (({}, 401), (login, 200), (key, 200), ({"Authorization": "Bearer user:pass"}, 401)):
            assert client.get("/sdapi/v1/options", headers=headers).status_code == status
        assert client.get("/sdapi/v1/options").headers["www-authenticate"] == "Basic"
        assert client.get("/v1/models", headers=login).status_code == 401
    with client_of(bare, a1111=True, api_keys=("correct-horse",)) as client:
        assert client.get("/sdapi/v1/options").status_code == 401
        assert client.get("/sdapi/v1/options", headers={"Origin": "https://x.example"} | key).status_code == 403
    with client_of(bare, a1111=True, api_auth=("user:pass",)) as client:
        assert client.get("/sdapi/v1/options", headers=key).status_code == 401
        assert client.get("/sdapi/v1/options", headers={"Origin": "https://x.example"} | login).status_code == 403
