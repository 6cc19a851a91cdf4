"""The official client against a real server."""

import base64
import io
import re

import httpx2
import numpy as np
import openai
import pytest
from openai.types import image_edit_params, image_generate_params
from PIL import Image
from serving import EDITS, GENERATIONS, listening, only_the_left_quarter_changed, png, png_of, start_and_mask

GENERATE = image_generate_params.ImageGenerateParamsNonStreaming
EDIT = image_edit_params.ImageEditParamsNonStreaming
# by OpenAI's documentation of its current image models, and values that change nothing here
HARMLESS = {
    "background": ["auto", "opaque"],
    "complexity": [],
    "frame_count": [9, 2, 16],
    "frame_duration_ms": [200],
    "model": ["fake"],
    "moderation": ["auto", "low"],
    "n": [1],
    "output_compression": [100],
    "output_format": ["png"],
    "partial_images": [0, 1, 3],
    "quality": ["auto"],
    "response_format": ["b64_json"],
    "safety_identifier": ["someone", ""],
    "size": ["auto", "64x64"],
    "stream": [False],
    "style": [],
    "svg": [],
    "user": ["someone", ""],
}
HARMLESS_EDIT = HARMLESS | {"input_fidelity": ["low"], "markup": [], "mask": []}
OURS = {"seed": [0, 7], "steps": [1]}


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0)


def pixels(datum):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(datum.b64_json))))


def test_generate(ai, bare):
    answer = ai.images.generate(
        prompt="a fox", n=2, size="64x64", output_format="png", model="fake", extra_body={"seed": 7, "steps": 2}
    )
    expected = bare(["a fox"] * 2, seed=7, num_inference_steps=2, output_type="np").images
    assert all(np.array_equal(pixels(a), b) for a, b in zip(answer.data, expected, strict=True))
    assert answer.sdturbo["backend"] == bare.backend.name
    assert [datum.seed for datum in answer.data] == [7, 8]


@pytest.mark.parametrize("as_list", [False, True])
def test_edit(ai, bare, tmp_path, as_list):
    (tmp_path / "x.png").write_bytes(png(80, 40))
    with (tmp_path / "x.png").open("rb") as file:
        image = [file] if as_list else file
        answer = ai.images.edit(image=image, prompt="a fox", extra_body={"seed": 3, "steps": 2, "strength": 0.5})
    expected = bare("a fox", tmp_path / "x.png", seed=3, num_inference_steps=2, strength=0.5, output_type="np")
    assert np.array_equal(pixels(answer.data[0]), expected.images[0])


def test_every_field_of_the_clients_signature_is_known():
    """A new release of OpenAI's package fails here until its new fields are decided on."""
    assert set(GENERATE.__annotations__) == {"prompt", *HARMLESS}
    assert set(EDIT.__annotations__) == {"prompt", "image", *HARMLESS_EDIT} - {"style", "moderation"}


@pytest.mark.parametrize("name", HARMLESS | OURS)
def test_a_generation_takes_every_field_at_null_and_at_what_changes_nothing(ai, name):
    for value in (None, *(HARMLESS | OURS)[name]):
        assert len(ai.images.generate(prompt="a fox", extra_body={name: value}).data) == 1, value


@pytest.mark.parametrize("name", HARMLESS_EDIT | OURS | {"strength": []})
def test_a_form_takes_every_field_at_null_and_at_what_changes_nothing(server, name):
    """Python's client writes null as nothing, JavaScript's as the word, and others as empty text."""
    for value in ("null", "", *(HARMLESS_EDIT | OURS).get(name, [])):
        text = "false" if value is False else str(value)
        answer = httpx2.post(server + EDITS, data={"prompt": "a fox", name: text}, files={"image": png()})
        assert answer.status_code == 200, (value, answer.text)


def test_all_fields_together(ai):
    first = {name: values[0] for name, values in HARMLESS.items() if values}
    nothing = dict.fromkeys(HARMLESS)
    expected = ai.images.generate(prompt="a fox", extra_body={"seed": 7}).data
    for fields in (first, nothing, {**nothing, "steps": None}):
        assert ai.images.generate(prompt="a fox", extra_body={"seed": 7, **fields}).data == expected
    expected = ai.images.edit(image=png(), prompt="a fox", extra_body={"seed": 7}).data
    fields = {name: values[0] for name, values in HARMLESS_EDIT.items() if values and name in EDIT.__annotations__}
    assert ai.images.edit(image=png(), prompt="a fox", extra_body={"seed": 7}, **fields).data == expected


@pytest.mark.parametrize(
    "field",
    [
        {"background": "transparent"},
        {"complexity": "high"},
        {"moderation": "none"},
        {"output_format": "gif"},
        {"partial_images": 4},
        {"quality": "high"},
        {"stream": True},
        {"style": "vivid"},
        {"svg": {"model": "x"}},
        {"input_fidelity": "low"},
    ],
)
def test_a_value_that_would_change_something_is_refused_by_name(server, field):
    answer = httpx2.post(server + GENERATIONS, json={"prompt": "a fox", **field})
    assert answer.status_code == 400
    assert re.match(next(iter(field)), answer.json()["error"]["param"])


def test_an_empty_prompt_is_drawn_by_both_routes_and_a_missing_one_by_none(server):
    for prompt in ("", "null"):
        assert httpx2.post(server + GENERATIONS, json={"prompt": prompt}).status_code == 200
        assert httpx2.post(server + EDITS, data={"prompt": prompt}, files={"image": png()}).status_code == 200
    answer = httpx2.post(server + EDITS, data={"seed": "7"}, files={"image": png()})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_edit_with_a_mask(ai, bare):
    start, mask = start_and_mask()
    answer = ai.images.edit(
        image=("x.png", png_of(start)), mask=("m.png", png_of(mask)), prompt="a fox", extra_body={"seed": 3, "steps": 2}
    )
    picture = pixels(answer.data[0])
    assert only_the_left_quarter_changed(picture, start)
    masked = {"mask_image": Image.fromarray(mask), "num_inference_steps": 2, "output_type": "np"}
    assert np.array_equal(picture, bare("a fox", start, seed=3, **masked).images[0])


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["fake"]
    assert ai.models.retrieve("fake").owned_by == "sdturbo"


def test_errors_are_the_clients_own_types(ai, bare):
    with pytest.raises(openai.BadRequestError) as refused:
        ai.images.generate(prompt="x", size="1024x1024")
    assert (refused.value.param, refused.value.type) == ("size", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        ai.images.generate(prompt="x", model="dall-e-3")
    assert unknown.value.code == "model_not_found"
    with listening(bare, api_keys=("correct-horse",)) as url:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong-horse").models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="correct-horse").models.list().data


def test_a_full_queue_is_a_rate_limit_that_the_client_waits_out(gated):
    pipeline, gate = gated
    with listening(pipeline, max_queue=1) as url:
        gate.shut()
        waiting = [
            openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=4, timeout=30)
            .with_options()
            .images.with_raw_response
            for _ in range(3)
        ]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(images.generate, prompt="x") for images in waiting]
            gate.wait_for_entry()
            with pytest.raises(openai.RateLimitError) as refused:
                for _ in range(20):
                    openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0).images.generate(prompt="x", n=1)
            gate.open.set()
            assert [answer.result(30).status_code for answer in answers] == [200, 200, 200]
    assert int(refused.value.response.headers["retry-after"]) >= 1
