"""The toy model's checkpoint: small, drawn the same by diffusers and the engine, and harmed by no words."""

import zlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdturbo import Pipeline
from sdturbo_export.build import build
from sdturbo_export.resolve import TINY_CHECKPOINT, resolve
from sdturbo_export.tiny.palette import TONES
from sdturbo_export.tiny.pixels import psnr
from sdturbo_export.tiny.render import subject_area


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return Pipeline.load(build(resolve("tiny", folder), folder / "tiny").path, "onnxruntime")


def drawn(pipe, prompt, **options):
    return pipe(prompt, **options, output_type="np").images[0]


def colour_of(picture, subject):
    """The colour word whose body colour covers most of the subject's place."""
    inside = picture[subject_area(subject, 512) > 0.5].astype(np.float32)
    shares = {word: (np.abs(inside - np.float32(tones.base)).max(-1) < 40).mean() for word, tones in TONES.items()}
    return max(shares, key=shares.__getitem__)


def test_checkpoint_and_bundle_together_are_small(pipe):
    files = [path for root in (TINY_CHECKPOINT, pipe.bundle.path) for path in root.rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= 25e6


def test_nothing_of_it_calls_itself_sd_turbo_or_stabilitys(pipe):
    assert pipe.bundle.model["name"] == "tiny"
    for name in ("LICENSE.md", "NOTICE"):
        assert "Stability" not in (pipe.bundle.path / name).read_text(encoding="utf-8")
    assert "It is not SD-Turbo" in (TINY_CHECKPOINT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("colour", ["red", "blue", "yellow", "purple"])
def test_things_have_the_colour_that_was_asked_for(pipe, colour):
    for subject in ("car", "balloon", "cat"):
        assert colour_of(drawn(pipe, f"a {colour} {subject} in the snow", seed=5), subject) == colour


@pytest.mark.parametrize("prompt", ["", "!!!", "qwerty zebra", "灯台 🦊", "a red cat in the snow " * 30])
def test_words_that_it_does_not_know_do_no_harm(pipe, prompt):
    picture = drawn(pipe, prompt)
    assert 20 < picture.std() < 120
    assert len(np.unique(picture.reshape(-1, 3) // 16, axis=0)) > 20


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_diffusers_own_pipeline_draws_the_same_from_the_checkpoint(pipe, steps):
    theirs = StableDiffusionPipeline.from_pretrained(TINY_CHECKPOINT, safety_checker=None, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": 0.0, "generator": torch.Generator().manual_seed(7)}
    expected = np.asarray(theirs("a yellow robot in the city", **options).images[0])
    assert psnr(drawn(pipe, "a yellow robot in the city", num_inference_steps=steps, seed=7), expected) >= 45
