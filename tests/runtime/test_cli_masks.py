"""The command `sdturbo generate` with masks and sizes, with the null backend."""

import numpy as np
import pytest
from PIL import Image

from sdturbo import Pipeline


@pytest.fixture
def start_and_mask(tmp_path):
    """The paths of a start picture and of a mask whose left half is white."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "start.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "start.png", tmp_path / "mask.png"


def test_a_mask_keeps_the_rest_of_the_picture(sdturbo, bundle_dir, start_and_mask, tmp_path):
    start, mask = start_and_mask
    arguments = ["--image", start, "--mask", mask, "--steps", 2, "--backend", "null"]
    assert sdturbo("generate", "x", *arguments, "--out", tmp_path / "out.png")[0] == 0
    expected = Pipeline.load(bundle_dir, "null")(
        "x", start, mask_image=mask, strength=1.0, num_inference_steps=2, output_type="np"
    ).images[0]
    with Image.open(tmp_path / "out.png") as image, Image.open(start) as before:
        assert np.array_equal(np.asarray(image), expected)
        assert np.array_equal(np.asarray(image)[:, 48:], np.asarray(before)[:, 48:])
        assert not np.array_equal(np.asarray(image)[:, :32], np.asarray(before)[:, :32])


def test_transparent_pixels_of_a_start_picture_are_a_mask(sdturbo, bundle_dir, start_and_mask, tmp_path):
    start, mask = start_and_mask
    with Image.open(start) as image, Image.open(mask) as hidden:
        image.putalpha(hidden.point([255 - level for level in range(256)]))
        image.save(tmp_path / "hole.png")
    arguments = ["--image", tmp_path / "hole.png", "--backend", "null"]
    assert sdturbo("generate", "x", *arguments, "--out", tmp_path / "out.png")[0] == 0
    expected = Pipeline.load(bundle_dir, "null")("x", start, mask_image=mask, output_type="np").images[0]
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), expected)


def test_masks_that_cannot_be_used_are_refused_in_words(sdturbo, start_and_mask, tmp_path):
    start, mask = start_and_mask
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    for arguments, words in (
        (["--mask", mask], "--mask without --image"),
        (["--image", start, "--mask", tmp_path / "black.png"], "without white"),
        (["--image", start, "--mask", tmp_path / "absent.png"], "absent.png"),
    ):
        status, _, stderr = sdturbo("generate", "x", *arguments, "--backend", "null", "--out", tmp_path / "out.png")
        assert status == 2
        assert words in stderr
    assert not (tmp_path / "out.png").exists()


def test_sizes_are_those_of_the_bundle(sdturbo, make_bundle, tmp_path):
    bundle = make_bundle(sizes=((64, 64), (96, 128)))
    arguments = ["x", "--bundle", bundle, "--backend", "null", "--out", tmp_path / "out.png"]
    assert sdturbo("generate", *arguments, "--size", "128x96")[0] == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 96)
    for size, words in (("64x128", "This bundle draws 64x64, 128x96"), ("big", "Expected width x height in pixels")):
        status, _, stderr = sdturbo("generate", *arguments, "--size", size)
        assert status == 2
        assert words in stderr
    assert "64x64, 128x96" in sdturbo("info", "--bundle", bundle)[1]
