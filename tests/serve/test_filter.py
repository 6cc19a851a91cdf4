"""The operator's filter in the server: what it refuses, and that nothing is given without its verdict."""

import asyncio
import base64
import io
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import filters
import httpx2
import numpy as np
import own_filter
import pytest
from filters import Words, error_of
from PIL import Image
from serving import BACKEND, EDITS, GENERATIONS, Gate, client_of, listening, load, png, wait_until

from sdturbo import InvalidRequest, Pipeline
from sdturbo.commands.console import run
from sdturbo_serve import create_app
from sdturbo_serve.cli import cli
from sdturbo_serve.filtering import THREADS, load_filter

POLICY = "content_policy_violation"


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def filtered(bare, words):
    with client_of(bare, filter=words, a1111=True) as client:
        yield client


def test_a_refused_prompt_is_answered_as_openai_answers_it(filtered):
    error = error_of(filtered.post(GENERATIONS, json={"prompt": "blood"}), 400)
    assert error["message"] == "The filter refused this request: no 'blood' here"
    assert (error["code"], error["type"], error["param"]) == (POLICY, "invalid_request_error", None)
    error = error_of(filtered.post(EDITS, data={"prompt": "blood"}, files={"image": png()}), 400)
    assert error["code"] == POLICY
    assert filtered.post(GENERATIONS, json={"prompt": "a fox"}).status_code == 200


def test_openais_client_gets_its_own_error(bare, words):
    import openai

    with listening(bare, filter=words) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="blood")
    assert refused.value.code == POLICY


def test_the_filter_sees_the_runtimes_pictures_and_cannot_change_them(bare):
    class Careless(Words):
        def __init__(self):
            super().__init__()
            self.seen = []

        def check_picture(self, picture):
            self.seen.append((picture.mode, picture.size, dict(picture.info), np.array(picture)))
            picture.info["parameters"] = "overwritten"
            picture.putpixel((0, 0), (1, 2, 3))
            picture.thumbnail((32, 32))

    careless, drawn = Careless(), bare("a fox", seed=1, output_type="np").images[0]
    with client_of(bare, filter=careless) as client:
        (given,) = client.post(GENERATIONS, json={"prompt": "a fox", "seed": 1}).json()["data"]
    file = Image.open(io.BytesIO(base64.b64decode(given["b64_json"])))
    assert np.array_equal(file, drawn)
    assert file.info["parameters"].startswith("a fox")
    ((mode, size, info, pixels),) = careless.seen
    assert (mode, size, info) == ("RGB", (64, 64), {})
    assert np.array_equal(pixels, drawn)


def test_a_refused_picture_is_not_given(filtered):
    for body in ({"prompt": "shown"}, {"prompt": "shown", "n": 3}):
        error = error_of(filtered.post(GENERATIONS, json=body), 400)
        assert error["message"] == "The filter refused this request: not this one"
        assert error["code"] == POLICY


@pytest.mark.parametrize("prompt", ["blood", "shown"])
def test_automatic1111s_routes_refuse_too(filtered, prompt):
    start = base64.b64encode(png()).decode()
    for route, more in (("txt2img", {}), ("img2img", {"init_images": [start]})):
        answer = filtered.post(f"/sdapi/v1/{route}", json={"prompt": prompt, **more})
        assert error_of(answer, 400)["code"] == POLICY
    assert filtered.post("/sdapi/v1/txt2img", json={"prompt": "a fox"}).status_code == 200


@pytest.mark.parametrize("prompt", ["blood", "shown"])
def test_a_live_connection_gets_the_error_and_goes_on(filtered, prompt):
    with filtered.websocket_connect("/v1/live") as socket:
        socket.send_json({"prompt": prompt})
        told = socket.receive_json()
        assert (told["type"], told["frame"], told["error"]["code"]) == ("error", 1, POLICY)
        socket.send_json({"prompt": "a fox"})
        assert socket.receive_json()["type"] == "frame"
        socket.receive_bytes()


def test_a_frame_that_was_refused_is_not_the_one_that_later_frames_resemble(filtered):
    camera = {"image": base64.b64encode(png()).decode(), "steps": 2, "skip_similar": 4}
    with filtered.websocket_connect("/v1/live") as socket:
        for number in (1, 2):
            socket.send_json({"prompt": "shown", **camera})
            told = socket.receive_json()
            assert (told["type"], told["frame"], told["error"]["code"]) == ("error", number, POLICY)


def test_both_prompts_of_a_blend_are_shown(filtered, words):
    with filtered.websocket_connect("/v1/live") as socket:
        socket.send_json({"prompt": "a cat", "second_prompt": "blood"})
        assert socket.receive_json()["error"]["code"] == POLICY
    assert words.prompts == ["a cat", "blood"]


def test_each_prompt_of_a_request_is_shown_once(filtered, words):
    assert filtered.post(GENERATIONS, json={"prompt": "a fox", "n": 4}).status_code == 200
    assert words.prompts == ["a fox"]


def test_the_engines_thread_and_the_event_loop_ask_nothing(filtered, words):
    assert filtered.post(GENERATIONS, json={"prompt": "a fox"}).status_code == 200
    assert words.threads
    assert all(name.startswith("sdturbo-filter") for name in words.threads)


@pytest.mark.parametrize("prompt", ["broken", "vague", "exit"])
def test_a_filter_that_fails_refuses_and_tells_the_log_alone(filtered, caplog, prompt):
    error = error_of(filtered.post(GENERATIONS, json={"prompt": f"{prompt} secret"}), 500)
    assert (error["code"], error["type"]) == ("filter_failed", "server_error")
    assert error["message"] == "The filter of this server failed, so nothing is given. Its log says why."
    (record,) = (record for record in caplog.records if record.message == "the filter failed")
    assert "check_prompt" in record.fields["reason"]
    assert prompt == "vague" or f"{filters.__file__}:" in record.fields["at"]
    assert "secret" not in caplog.text + str(record.fields)
    assert filtered.post(GENERATIONS, json={"prompt": "a fox"}).status_code == 200


@pytest.mark.parametrize("raised", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
def test_no_exception_of_a_filter_ends_its_threads(bare, caplog, raised):
    class Raising(Words):
        def check_prompt(self, prompt):
            if prompt == "secret":
                raise raised(prompt)

    with client_of(bare, filter=Raising()) as client:
        for _ in range(THREADS + 1):
            assert error_of(client.post(GENERATIONS, json={"prompt": "secret"}), 500)["code"] == "filter_failed"
        assert client.post(GENERATIONS, json={"prompt": "a fox"}).status_code == 200
    records = [record for record in caplog.records if record.message == "the filter failed"]
    assert len(records) == THREADS + 1
    assert raised.__name__ in records[0].fields["reason"]
    assert f"{__file__}:" in records[0].fields["at"]
    assert "secret" not in caplog.text + str(records[0].fields)


def test_a_refusal_that_is_raised_is_one(filtered):
    error = error_of(filtered.post(GENERATIONS, json={"prompt": "raised"}), 400)
    assert error["message"] == "The filter refused this request: raised by hand"


def test_a_reason_with_half_a_character_is_answered(filtered):
    answer = filtered.post(
        GENERATIONS, content=json.dumps({"prompt": "blood \ud800"}), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400


def test_a_refused_picture_takes_no_other_request_of_its_batch_with_it(serve_bundle):
    """Four requests are drawn together, and one of them is refused."""
    pipeline = load(serve_bundle)
    refused = np.asarray(pipeline("shown", seed=1).images[0])

    class Eyes(Words):
        def check_picture(self, picture):
            return "not this one" if np.array_equal(picture, refused) else None

    gate = Gate(pipeline)
    with listening(pipeline, filter=Eyes()) as url, ThreadPoolExecutor() as threads:
        gate.shut()
        blocker = threads.submit(httpx2.post, url + GENERATIONS, json={"prompt": "first"}, timeout=30)
        gate.wait_for_entry()
        prompts = ["a fox", "shown", "a cat", "a dog"]
        others = [
            threads.submit(httpx2.post, url + GENERATIONS, json={"prompt": text, "seed": 1}, timeout=30)
            for text in prompts
        ]
        wait_until(lambda: "sdturbo_queue_pictures 4.0" in httpx2.get(f"{url}/metrics").text)
        gate.open.set()
        answers = [other.result() for other in others]
        assert blocker.result().status_code == 200
    assert gate.batches == [1, 4]
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200]


def test_the_example_is_loaded_by_name_and_refuses(bare):
    example = load_filter("own_filter:OwnFilter")
    assert isinstance(example, own_filter.OwnFilter)
    with client_of(bare, filter=example) as client:
        error = error_of(client.post(GENERATIONS, json={"prompt": "A Weapon, in BLOOD"}), 400)
    assert error["message"] == "The filter refused this request: this server draws no blood or weapon"
    assert example.check_picture(Image.fromarray(np.zeros((8, 8, 3), np.uint8))) == "the picture is too dark"
    assert example.check_picture(Image.fromarray(np.full((8, 8, 3), 99, np.uint8))) is None


def test_a_pipeline_with_a_filter_of_its_own_is_refused(serve_bundle, words):
    pipeline = Pipeline.load(serve_bundle, BACKEND, num_threads=1, filter=words)
    with pytest.raises(InvalidRequest, match="give the filter to create_app"):
        create_app(pipeline)


def test_objects_classes_and_functions_are_filters(tmp_path, monkeypatch):
    (tmp_path / "filters_of_a_test.py").write_text(
        "class Kind:\n    def check_prompt(self, prompt): return None\n    def check_picture(self, picture): return None\n"
        "ready = Kind()\ndef made(): return Kind()\nhalf = object()\nnumber = 3\n"
        "def broken(): raise ValueError('no model')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("Kind", "ready", "made"):
        assert load_filter(f"filters_of_a_test:{name}").check_prompt("x") is None
    for name, words in (
        ("filters_of_a_test", "Expected package.module:name."),
        (":Kind", "Expected package.module:name."),
        ("no_such_module_here:Kind", "ModuleNotFoundError"),
        ("filters_of_a_test:Other", "has no attribute 'Other'"),
        ("filters_of_a_test:number", "'int' object is not callable"),
        ("filters_of_a_test:broken", "ValueError: no model"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            load_filter(name)


def test_the_command_refuses_a_filter_before_the_model_is_loaded(tmp_path, capsys):
    assert run(cli, "sdturbo-serve", ["--bundle", str(tmp_path), "--filter", "no_such_module_here:Kind"]) == 2
    assert "Cannot load the filter 'no_such_module_here:Kind'" in capsys.readouterr().err
    logging.getLogger().handlers.clear()
