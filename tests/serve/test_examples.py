"""The embedding examples do what they say."""

import asyncio
import io
import time

import asyncio_program
import diffusers_dropin
import fastapi_app
import numpy as np
import pytest
import webcam_loop
from fastapi.testclient import TestClient
from PIL import Image
from serving import GENERATIONS, wait_until


def test_in_somebody_elses_fastapi_app(bare):
    with TestClient(fastapi_app.make(bare)) as client:
        wait_until(lambda: client.get("/pictures/readyz").status_code == 200)
        assert "pictures" in client.get("/hello").json()
        answer = client.post(f"/pictures{GENERATIONS}", json={"prompt": "x", "seed": 1})
        assert answer.json()["data"][0]["seed"] == 1
        assert client.get("/pictures/").text.startswith("<!doctype html>")
        assert client.get("/pictures/page/page.css").status_code == 200


def test_in_an_asyncio_program(bare, capsys):
    results = asyncio.run(asyncio_program.main(bare))
    expected = bare("a red cat in the snow", seed=1, output_type="np").images[0]
    assert [result.seeds for result in results] == [[0], [1]]
    assert np.array_equal(np.asarray(results[1].images[0]), expected)
    assert "the loop went round" in capsys.readouterr().out


def test_a_camera_faster_than_the_engine_is_skipped_over_to_its_newest_image(bare):
    seen = []
    for number, picture in webcam_loop.redraw(bare, webcam_loop.rising_sun(20, 0.01), "a house"):
        assert picture.size == (64, 64)
        seen.append(number)
        time.sleep(0.05)
    assert seen == sorted(set(seen))
    assert seen[-1] == 19
    assert len(seen) < 20


def test_a_broken_camera_is_heard_of(bare):
    def broken():
        yield Image.new("RGB", (64, 64))
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(webcam_loop.redraw(bare, broken(), "a house"))


def test_for_code_written_for_diffusers(bare):
    import torch

    pipe = diffusers_dropin.TextToImage(bare)
    file = io.BytesIO()
    diffusers_dropin.someone_elses_code(pipe).save(file, "PNG")
    ours = bare("x", seed=7, num_inference_steps=2, output_type="np").images[0]
    theirs = pipe(prompt="x", num_inference_steps=2, generator=torch.Generator().manual_seed(7)).images[0]
    assert np.array_equal(ours, np.asarray(theirs))
    with pytest.raises(ValueError, match="without guidance"):
        pipe("x", guidance_scale=7.5)
