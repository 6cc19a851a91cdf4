"""Distances between pictures, and the rows that they become."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import checkpoint, quality, suite
from benchmarks.tables import document_tables
from sdturbo import Pipeline
from sdturbo.bundle import Bundle
from sdturbo.errors import InvalidRequest

GREY = np.full((32, 32, 3), 128, np.uint8)


def test_psnr_and_ssim_against_hand_computed_values():
    shifted = GREY + np.uint8(
        5
    )  # squared error 25; constant pictures: SSIM = (2ab + c) / (a² + b² + c), c = (0.01·255)²
    assert quality.psnr(GREY, GREY) == quality.EQUAL_DB
    assert quality.psnr(shifted, GREY) == pytest.approx(10 * np.log10(255**2 / 25))
    assert quality.ssim(GREY, GREY) == pytest.approx(1)
    a, b, c = 128, 133, 2.55**2
    assert quality.ssim(shifted, GREY) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-6)


def test_prompts_are_many_and_different():
    texts = quality.prompts(quality.LEAST)
    assert len(set(texts)) == quality.LEAST >= 32
    with pytest.raises(InvalidRequest, match="Expected 32 to"):
        quality.prompts(4)


@pytest.fixture
def references(bundle_dir, monkeypatch):
    """Draws of the null backend stand for diffusers' ones; the third of them is wrong."""

    def reference(_, texts, steps):
        pipe = Pipeline.load(bundle_dir, "null", image_to_image=False)
        pictures = [pipe(t, seed=i, num_inference_steps=steps, output_type="np").images[0] for i, t in enumerate(texts)]
        pictures[2] = pictures[2] ^ np.uint8(64)
        return pictures

    monkeypatch.setattr(quality, "reference", reference)


def test_rows_hold_the_median_and_the_worst(bundle_dir, references, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "engines", lambda bundle: [("null", "none"), ("onnxruntime", "bf99")])
    document = quality.run(Bundle.load(bundle_dir), None, tmp_path, 32, 1)
    assert json.loads((tmp_path / "quality-fake.json").read_text()) == document
    exact, refused = document["rows"]
    assert exact["median_psnr_db"] == quality.EQUAL_DB
    assert exact["worst_psnr_db"] == pytest.approx(20 * np.log10(255 / 64)) == exact["psnr_db"][2]
    assert exact["median_ssim"] == pytest.approx(1)
    assert exact["worst_ssim"] == min(exact["ssim"]) == exact["ssim"][2] < 0.99
    assert "bf99" in refused["error"]
    text = document_tables(document)
    assert "| null none" in text and "12.0" in text and "32 prompts" in text


def test_a_checkpoint_of_other_weights_is_refused(bundle_dir, monkeypatch):
    other = SimpleNamespace(hashes=lambda: {"unet/model.safetensors": "0" * 64})
    monkeypatch.setattr("sdturbo_export.weights.resolve.resolve", lambda model, workspace: other)
    with pytest.raises(InvalidRequest, match="would not draw the same"):
        checkpoint.checkpoint_of(Bundle.load(bundle_dir), "small")
