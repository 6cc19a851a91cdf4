"""The package `webuiapi`, unchanged, against a real server with AUTOMATIC1111's API."""

import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from serving import Gate, listening, load, only_the_left_quarter_changed, start_and_mask, wait_until

webuiapi = pytest.importorskip("webuiapi", reason="the extra `dev` brings it")


def api_of(url, **login):
    address = urlsplit(url)
    return webuiapi.WebUIApi(host=address.hostname, port=address.port, **login)


@pytest.fixture(scope="module")
def api(bare):
    with listening(bare, a1111=True) as url:
        yield api_of(url)


def test_text_to_image(api, bare):
    result = api.txt2img(prompt="a fox", seed=7, batch_size=2, negative_prompt="dogs")
    expected = bare(["a fox"] * 2, seed=7, num_inference_steps=4, output_type="np").images
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(result.images, expected, strict=True))
    assert result.info["all_seeds"] == [7, 8]
    assert (result.info["steps"], result.info["width"]) == (4, 64)
    told = result.info["sdturbo"]["not_honoured"]
    assert told["steps"] == "20 became 4"
    assert told["size"] == "512x512 became 64x64"
    assert set(told) == {"steps", "size", "cfg_scale", "sampler_name", "sampler_index", "negative_prompt"}
    assert result.info["infotexts"][0] == result.image.info["parameters"]


def test_a_request_for_what_there_is_is_honoured_whole(api):
    result = api.txt2img(
        prompt="a fox", steps=2, width=64, height=64, cfg_scale=1, sampler_name="Euler", sampler_index="Euler"
    )
    assert result.info["sdturbo"]["not_honoured"] == {}
    assert result.info["steps"] == 2


def test_image_to_image(api, bare):
    start, _ = start_and_mask()
    result = api.img2img(images=[Image.fromarray(start)], prompt="a fox", seed=3, denoising_strength=0.5)
    expected = bare("a fox", start, seed=3, num_inference_steps=4, strength=0.5, output_type="np").images[0]
    assert np.array_equal(np.asarray(result.image), expected)
    assert result.info["denoising_strength"] == 0.5
    assert "inpainting_fill" not in result.info["sdturbo"]["not_honoured"]


@pytest.mark.parametrize("inverted", [0, 1])
def test_a_mask_is_white_where_it_is_drawn_anew(api, inverted):
    start, mask = start_and_mask()
    white = (mask[..., 3] < 128) ^ bool(inverted)
    result = api.img2img(
        images=[Image.fromarray(start)],
        mask_image=Image.fromarray(white),
        inpainting_mask_invert=inverted,
        prompt="a fox",
        denoising_strength=1.0,
    )
    assert only_the_left_quarter_changed(np.asarray(result.image), start)
    assert "inpaint_full_res" in result.info["sdturbo"]["not_honoured"]


def test_what_a_file_says_is_read_back(api):
    drawn = api.txt2img(prompt="a fox, 灯台", seed=7)
    result = api.png_info(drawn.image)
    assert result.info == drawn.image.info["parameters"]
    assert result.parameters["Prompt"] == "a fox, 灯台"
    assert (result.parameters["Steps"], result.parameters["Seed"]) == ("4", "7")


def test_lists_and_options(api, bare):
    title = f"fake [{bare.bundle.bundle_id[:10]}]"
    assert api.util_get_model_names() == [title]
    assert api.util_get_current_model() == title
    api.util_set_model("fake")
    assert api.set_options({"sd_model_checkpoint": "fake"}) is None
    assert api.set_options({"samples_format": "jpg"}) == {"not_honoured": {"samples_format": "jpg changes nothing"}}
    assert api.util_get_sampler_names() == ["Euler"]
    assert api.util_get_scheduler_names() == ["automatic"]
    for empty in (api.get_loras, api.get_upscalers, api.get_sd_vae, api.get_prompt_styles, api.get_face_restorers):
        assert empty() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.refresh_checkpoints() is None
    api.util_wait_for_ready(check_interval=0.1)


class Turnstile:
    """Lets as many batches pass as are asked for, in the place of a gate's event."""

    def __init__(self):
        self.passes = threading.Semaphore(0)

    def wait(self, seconds):
        return self.passes.acquire(timeout=seconds)


def test_progress_and_interrupt(serve_bundle):
    pipeline = load(serve_bundle)
    gate = Gate(pipeline)
    with listening(pipeline, a1111=True) as url, ThreadPoolExecutor(2) as pool:
        api = api_of(url)
        assert api.get_progress()["progress"] == 0
        gate.shut()
        gate.open = Turnstile()
        first = pool.submit(api_of(url).txt2img, prompt="a fox", batch_size=4, n_iter=2, steps=1)
        gate.wait_for_entry()
        second = pool.submit(api_of(url).txt2img, prompt="a cat", steps=1)
        wait_until(lambda: api.get_progress()["state"]["job_count"] == 2)
        assert api.get_progress()["progress"] == 0.01
        gate.open.passes.release()
        gate.wait_for_entry()  # the second batch of the first request
        assert api.get_progress()["progress"] == 0.5
        api.interrupt()
        interrupted = first.result(30)  # before its second batch may pass
        assert len(interrupted.images) == 4
        assert interrupted.info["sdturbo"]["interrupted"]
        wait_until(lambda: api.get_progress()["state"]["job_count"] == 1)
        api.interrupt()
        assert second.result(30).images == []
        gate.open.passes.release(100)
        assert api.get_progress()["progress"] == 0
        assert len(api.txt2img(prompt="a fox", steps=1).images) == 1


def test_names_and_passwords(bare):
    with listening(bare, a1111=True, api_auth=("user:pass:word", "other:secret")) as url:
        assert len(api_of(url, username="user", password="pass:word").txt2img(prompt="x").images) == 1
        assert len(api_of(url, username="other", password="secret").txt2img(prompt="x").images) == 1
        for login in ({}, {"username": "user", "password": "wrong"}):
            with pytest.raises(RuntimeError) as refused:
                api_of(url, **login).txt2img(prompt="x")
            assert refused.value.args[0] == 401


def test_an_adapter_in_the_prompt_is_refused_in_words(api):
    with pytest.raises(RuntimeError, match="sdturbo-export build --lora") as refused:
        api.txt2img(prompt="a fox <lora:pixelart:0.8>")
    assert refused.value.args[0] == 400
