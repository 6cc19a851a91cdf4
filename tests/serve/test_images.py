"""POST /v1/images/generations and edits, models, probes and metrics, in process on the hand-made bundle."""

import base64
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import (
    EDITS,
    GENERATIONS,
    client_of,
    load,
    only_the_left_quarter_changed,
    png,
    png_of,
    start_and_mask,
    wait_until,
)

from sdturbo import Pipeline
from sdturbo_serve import create_app


def picture_of(datum):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(datum["b64_json"]))).convert("RGB"))


def test_a_generation_is_the_bare_engines_picture(client, bare):
    answer = client.post(GENERATIONS, json={"prompt": "a fox", "seed": 7, "steps": 2, "n": 3}).json()
    expected = bare(["a fox"] * 3, seed=7, num_inference_steps=2, output_type="np").images
    assert [datum["seed"] for datum in answer["data"]] == [7, 8, 9]
    assert all(np.array_equal(picture_of(a), b) for a, b in zip(answer["data"], expected, strict=True))
    assert answer["size"] == "64x64"


def test_an_answer_names_backend_seed_times_and_dropped_text(client, bare):
    answer = client.post(GENERATIONS, json={"prompt": "word " * 100}).json()
    report = answer["sdturbo"]
    assert (report["backend"], report["bundle_id"]) == (bare.backend.name, bare.bundle.bundle_id)
    assert report["decoder"] == "AutoencoderKL"
    assert {"text_encoder", "denoiser", "decoder", "total"} <= report["timings_ms"].keys()
    assert report["dropped"].strip().startswith("word")
    assert 0 <= answer["data"][0]["seed"] < 2**32


def test_a_decoder_in_the_checkpoints_decoders_place_is_named(serve_bundle):
    pipeline = load(serve_bundle)
    pipeline.bundle.model["decoder"] = "AutoencoderTiny taesd"
    with client_of(pipeline) as client:
        report = client.post(GENERATIONS, json={"prompt": "x"}).json()["sdturbo"]
    assert report["decoder"] == "AutoencoderTiny taesd"


@pytest.mark.parametrize(
    ("given", "kept"), [("build-7:a.b_c", True), ("", False), ("x" * 65, False), ("a b", False), ("é", False)]
)
def test_a_request_keeps_its_id_if_it_is_valid(client, given, kept):
    answer = client.get("/v1/models", headers={"X-Request-Id": given.encode("latin-1")})
    ids = answer.headers.get_list("x-request-id")
    assert len(ids) == 1
    assert (ids[0] == given) == kept
    assert ids[0].isascii()


@pytest.mark.parametrize("asked", [{}, {"seed": None}, {"seed": -1}])
def test_two_requests_without_a_seed_differ(client, asked):
    seeds = {client.post(GENERATIONS, json={"prompt": "x", **asked}).json()["data"][0]["seed"] for _ in range(4)}
    assert len(seeds) == 4
    assert client.post(GENERATIONS, json={"prompt": "x", "seed": -2}).status_code == 400


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_format_carries_how_it_was_made(client, output_format):
    body = {"prompt": "a fox, 灯台", "seed": 3, "output_format": output_format, "output_compression": 90}
    answer = client.post(GENERATIONS, json=body).json()
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert image.format == output_format.upper()
    if output_format == "png":
        text = image.text["parameters"]
    else:
        text = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert text.startswith("a fox, 灯台\nSteps: 1, ")
    assert "Seed: 3," in text


def test_an_edit_is_the_bare_engines_picture(client, bare, tmp_path):
    form = {"prompt": "a fox", "seed": "5", "steps": "4", "strength": "0.5", "n": "2"}
    answer = client.post(EDITS, data=form, files={"image": ("x.png", png(90, 50))}).json()
    (tmp_path / "x.png").write_bytes(png(90, 50))
    for i, datum in enumerate(answer["data"]):
        expected = bare("a fox", tmp_path / "x.png", strength=0.5, num_inference_steps=4, seed=5 + i, output_type="np")
        assert np.array_equal(picture_of(datum), expected.images[0])
    assert answer["sdturbo"]["strength"] == 0.5


@pytest.mark.parametrize("steps", [1, 4])
def test_a_mask_changes_its_own_pixels_and_no_others(client, bare, steps):
    start, mask = start_and_mask()
    files = {"image": ("x.png", png_of(start)), "mask": ("m.png", png_of(mask))}
    answer = client.post(
        EDITS, data={"prompt": "a fox", "seed": "5", "steps": f"{steps}", "n": "2"}, files=files
    ).json()
    masked = {"mask_image": Image.fromarray(mask), "num_inference_steps": steps, "output_type": "np"}
    for i, datum in enumerate(answer["data"]):
        picture = picture_of(datum)
        assert only_the_left_quarter_changed(picture, start)
        assert np.array_equal(picture, bare("a fox", start, seed=5 + i, **masked).images[0])
    assert answer["sdturbo"]["strength"] == 1.0


def test_an_opaque_mask_is_white_where_it_is_drawn_anew(client):
    start, mask = start_and_mask()
    white = Image.fromarray(mask[..., 3] < 128).convert("L")
    pictures = [
        client.post(EDITS, data={"prompt": "a fox", "seed": "5"}, files={"image": png_of(start), "mask": png_of(each)})
        for each in (mask, white)
    ]
    assert only_the_left_quarter_changed(picture_of(pictures[1].json()["data"][0]), start)
    assert pictures[0].json()["data"] == pictures[1].json()["data"]


def test_transparent_pixels_of_an_image_are_its_mask_unless_one_is_sent(client):
    start, mask = start_and_mask()
    alpha = np.repeat(np.repeat(mask[..., 3:], 2, axis=0), 2, axis=1)
    see_through = png_of(np.concatenate([start, alpha], axis=2))

    def edited(**files):
        answer = client.post(EDITS, data={"prompt": "a fox", "seed": "5", "steps": "2"}, files=files).json()
        return picture_of(answer["data"][0])

    assert only_the_left_quarter_changed(edited(image=see_through), start)
    right = png_of(np.flip(alpha[..., 0] < 128, axis=1))
    picture = edited(image=see_through, mask=right)
    assert np.array_equal(picture[:, :32], start[:, :32])
    assert (picture[:, 48:] != start[:, 48:]).any(axis=2).mean() > 0.9


def test_the_model_is_listed_and_found(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake"]
    model = client.get("/v1/models/fake").json()
    assert (model["object"], model["sizes"]) == ("model", ["64x64"])
    assert client.get("/v1/models/other").status_code == 404
    assert client.post(GENERATIONS, json={"prompt": "x", "model": "fake", "size": "64x64"}).status_code == 200


def test_the_model_names_its_sizes_and_draws_each(sized):
    with client_of(sized) as client:
        assert client.get("/v1/models").json()["data"][0]["sizes"] == ["64x64", "96x64"]
        for asked, (width, height) in {None: (64, 64), "auto": (64, 64), "64x64": (64, 64), "96x64": (96, 64)}.items():
            answer = client.post(GENERATIONS, json={"prompt": "x", "seed": 1, "size": asked}).json()
            expected = sized("x", seed=1, height=height, width=width, output_type="np").images[0]
            assert answer["size"] == f"{width}x{height}"
            assert np.array_equal(picture_of(answer["data"][0]), expected)
        refused = client.post(GENERATIONS, json={"prompt": "x", "size": "64x96"})
        assert refused.status_code == 400
        assert "'64x64', '96x64'" in refused.json()["error"]["message"]


def test_metrics_count_what_happened(bare):
    with client_of(bare) as client:
        client.post(GENERATIONS, json={"prompt": "x", "n": 4})
        client.post(GENERATIONS, json={"prompt": "x", "n": 40})
        text = client.get("/metrics").text
    assert "sdturbo_pictures_total 4.0" in text
    assert 'sdturbo_stage_seconds_count{stage="denoiser"} 1.0' in text
    assert 'sdturbo_batch_size_bucket{le="4.0"} 1.0' in text
    assert 'sdturbo_requests_total{route="/v1/images/generations",status="400"} 1.0' in text
    assert "sdturbo_queue_pictures 0.0" in text


def test_ready_only_with_the_golden_picture(serve_bundle):
    with client_of(load(serve_bundle)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/healthz").status_code == 200


def test_an_engine_that_draws_another_golden_picture_takes_no_request(serve_bundle):
    with TestClient(create_app(Pipeline.load(serve_bundle, "null"))) as client:
        wait_until(lambda: "golden picture at" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        answer = client.post(GENERATIONS, json={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert client.get("/healthz").status_code == 200


def test_no_stack_trace_when_the_engine_breaks(serve_bundle):
    pipeline = load(serve_bundle)
    with client_of(pipeline) as client:
        pipeline._sessions.clear()
        answer = client.post(GENERATIONS, json={"prompt": "something new"})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "Traceback" not in answer.text
        assert client.get("/healthz").status_code == 200
