"""The model that comes with the package: its bundle is its checkpoint's, draws what it says, and is small."""

import json
import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from sdturbo import Bundle, Pipeline
from sdturbo.bundle import EMBEDDED
from sdturbo_export.build import build
from sdturbo_export.weights.resolve import TINY_CHECKPOINT, resolve
from training.tiny.captions import plain_caption
from training.tiny.palette import TONES
from training.tiny.pixels import psnr
from training.tiny.render import subject_area
from training.tiny.scenery import SCENERY
from training.tiny.scenes import Combination
from training.tiny.starts import Starts
from training.tiny.subjects import SUBJECTS

MB = 1e6


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.load(backend="onnxruntime")


def drawn(pipe, prompt, **options):
    return pipe(prompt, **options, output_type="np").images[0]


def colour_of(picture, subject):
    """The colour word whose body colour covers most of the subject's place."""
    inside = picture[subject_area(subject, 512) > 0.5].astype(np.float32)
    shares = {word: (np.abs(inside - np.float32(tones.base)).max(-1) < 40).mean() for word, tones in TONES.items()}
    return max(shares, key=shares.__getitem__)


def test_checkpoint_and_bundle_are_small():
    files = [path for root in (TINY_CHECKPOINT, EMBEDDED) for path in root.rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= 25 * MB


def test_the_bundle_was_made_from_the_checkpoint(tmp_path):
    checkpoint = resolve("tiny", tmp_path)
    embedded, built = Bundle.load(EMBEDDED), build(checkpoint, tmp_path / "tiny")
    assert dict(embedded.model["weights"]) == checkpoint.hashes()
    assert embedded.model["name"] == built.model["name"] == "tiny"
    for options in ({"num_inference_steps": 1}, {"num_inference_steps": 4, "seed": 3}):
        ours, theirs = (
            drawn(Pipeline.load(one.path, precision="fp32"), "a blue car at night", **options)
            for one in (embedded, built)
        )
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_nothing_of_it_calls_itself_sd_turbo_or_stabilitys():
    for name in ("LICENSE.md", "NOTICE"):
        text = (EMBEDDED / name).read_text(encoding="utf-8")
        assert "Stability" not in text
    assert "Apache License" in (EMBEDDED / "LICENSE.md").read_text(encoding="utf-8")
    assert json.loads((EMBEDDED / "bundle.json").read_text())["model"]["name"] == "tiny"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_things_have_the_colour_that_was_asked_for(pipe, subject):
    asked = ("red", "blue", "green", "yellow")
    seen = [colour_of(drawn(pipe, f"a {colour} {subject} in the snow", seed=5), subject) for colour in asked]
    assert tuple(seen) == asked


@pytest.mark.parametrize("scene", SCENERY)
def test_seeds_differ_and_one_seed_does_not(pipe, scene):
    prompt = plain_caption(Combination("boat", "red", scene))
    pictures = [drawn(pipe, prompt, seed=seed) for seed in (0, 1, 2, 3)]
    assert np.array_equal(pictures[0], drawn(pipe, prompt, seed=0))
    for one, other in combinations(pictures, 2):
        assert (np.abs(one.astype(int) - other).max(-1) > 16).mean() >= 0.05


@pytest.mark.parametrize("prompt", ["", "!!!", "qwerty zebra", "灯台 🦊", "a red cat in the snow " * 30])
def test_words_that_it_does_not_know_do_no_harm(pipe, prompt):
    picture = drawn(pipe, prompt)
    assert 20 < picture.std() < 120
    assert len(np.unique(picture.reshape(-1, 3) // 16, axis=0)) > 20


def test_unknown_words_leave_the_picture_alone(pipe):
    plain = drawn(pipe, "a red cat in the snow", seed=2)
    for prompt in ("a red zebra cat in the snow", "a red cat in the snow, trending, masterpiece"):
        assert colour_of(drawn(pipe, prompt, seed=2), "cat") == "red"
        assert psnr(drawn(pipe, prompt, seed=2), plain) > psnr(drawn(pipe, "a blue boat at night", seed=2), plain) + 5


def test_image_to_image_keeps_the_layout(pipe):
    start = drawn(pipe, "a red cat in a meadow", seed=11)
    fresh = drawn(pipe, "a red cat in a meadow", seed=12, num_inference_steps=4)
    kept = drawn(pipe, "a red cat in a meadow", image=start, strength=0.5, num_inference_steps=4, seed=12)
    assert psnr(kept, start) > psnr(fresh, start) + 3


@pytest.mark.parametrize("kind", ["drawing", "gradient", "photograph", "picture"])
def test_a_start_picture_is_followed_less_with_more_strength(pipe, kind):
    kinds = ("drawing", "gradient", "photograph")
    starts = (
        [Starts(held_out=True).picture(300 + 3 * i + kinds.index(kind)) for i in range(3)]
        if kind in kinds
        else [drawn(pipe, "a red cat in the snow", seed=seed) for seed in (1, 2, 3)]
    )
    decibels = []
    for seed, start in enumerate(starts):
        options = {"image": Image.fromarray(start), "num_inference_steps": 4, "seed": seed}
        pictures = [drawn(pipe, "a green boat at night", strength=s, **options) for s in (0.25, 0.5, 0.75, 1.0)]
        decibels.append([psnr(picture, start) for picture in pictures])
        assert decibels[-1] == sorted(decibels[-1], reverse=True)
        other = drawn(pipe, "a yellow robot in the city", strength=0.25, **options)
        assert (np.abs(pictures[0].astype(int) - other).max(-1) > 16).mean() >= 0.03
    assert np.median(decibels, axis=0)[0] >= 15


def test_a_drawn_colour_stays_where_it_was_drawn(pipe):
    start = np.full((512, 512, 3), 255, np.uint8)
    start[40:200, 300:480] = (0x25, 0x66, 0xD8)
    picture = drawn(pipe, "a cat", image=start, strength=0.5, num_inference_steps=2)
    inside = picture[60:180, 400:470].reshape(-1, 3).astype(int).mean(0)
    assert inside[2] > inside[0] + 40


def test_inpainting_draws_the_prompt_in_the_mask_alone(pipe):
    start = drawn(pipe, "a red cat in the snow", seed=3)
    mask = np.zeros((512, 512), np.bool_)
    mask[80:450, 100:420] = True
    picture = drawn(pipe, "a blue cat in the snow", image=start, mask_image=mask, num_inference_steps=4, seed=3)
    far = np.ones_like(mask)
    far[80 - 16 : 450 + 16, 100 - 16 : 420 + 16] = False
    assert np.array_equal(picture[far], start[far])
    assert colour_of(picture, "cat") == "blue"


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_diffusers_own_pipeline_draws_the_same_from_the_checkpoint(pipe, steps):
    import torch

    theirs = StableDiffusionPipeline.from_pretrained(TINY_CHECKPOINT, safety_checker=None, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    prompt = "a yellow robot in the city"
    expected = theirs(
        prompt, num_inference_steps=steps, guidance_scale=0.0, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert psnr(drawn(pipe, prompt, num_inference_steps=steps, seed=7), np.asarray(expected)) >= 45


def test_the_card_says_what_it_is():
    text = Path(TINY_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert "It is not SD-Turbo" in text
    assert "Not measured yet" not in text
