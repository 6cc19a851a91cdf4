"""The distance of every backend and precision to PyTorch in fp32, over many prompts. `make bench-quality`.

It is given as PSNR (peak signal-to-noise ratio) and SSIM (structural similarity). The reference is diffusers' own pipeline on
the checkpoint, with the same prompts and seeds. Only a trained model shows the effect of a precision on pictures. With seeded
weights the figures are those of a texture.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import results, suite
from benchmarks.checkpoint import checkpoint_of
from benchmarks.report import report
from benchmarks.results import Results
from sdturbo import Pipeline
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MAX_STEPS
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo.golden import difference

if TYPE_CHECKING:
    from sdturbo_export.weights.checkpoint import Checkpoint

Picture = NDArray[np.uint8]
EQUAL_DB = 99.0  # stands for equal pictures, because JSON has no infinity
LEAST = 32  # prompts
KEY = ("backend", "precision")


def psnr(picture: Picture, expected: Picture) -> float:
    """PSNR in decibels of two uint8 pictures of one shape, at most EQUAL_DB."""
    return min(difference(picture, expected)[0], EQUAL_DB)


def ssim(picture: Picture, expected: Picture) -> float:
    """SSIM of two uint8 (H, W, 3) pictures, 1 for equal ones: Wang et al. 2004, Gaussian window, sigma 1.5."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity(
        picture, expected, channel_axis=2, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    return float(similarity)


def prompts(count: int) -> list[str]:
    """Captions of the toy model's held-out combinations, spread evenly over them."""
    file = files("sdturbo_export").joinpath("tiny/held_out_captions.txt")
    captions = file.read_text(encoding="utf-8").splitlines()
    if not LEAST <= count <= len(captions):
        raise InvalidRequest(f"Got {count} prompts. Expected {LEAST} to {len(captions)}.")
    return [captions[i * len(captions) // count] for i in range(count)]


def reference(checkpoint: Checkpoint, texts: Sequence[str], steps: int) -> list[Picture]:
    """diffusers' picture of every prompt, prompt i with seed i, in fp32 on the CPU."""
    from sdturbo_export.proof.diffusers_reference import Asked, draw

    pictures: list[Picture] = []
    for seed, text in enumerate(texts):
        unused = Image.new("RGB", (8, 8))
        pictures += draw(checkpoint, text, seed, unused, unused, [Asked(steps)])
        gc.collect()  # diffusers' pipelines hold reference cycles
    return pictures


def distances(pipe: Pipeline, texts: Sequence[str], expected: Sequence[Picture], steps: int) -> dict[str, Any]:
    """PSNR and SSIM of every prompt's picture, with the median and the worst of each."""
    row: dict[str, Any] = {"psnr_db": [], "ssim": []}
    for seed, (text, reference) in enumerate(zip(texts, expected, strict=True)):
        picture = pipe(text, seed=seed, num_inference_steps=steps, output_type="np").images[0]
        row["psnr_db"].append(psnr(picture, reference))
        row["ssim"].append(ssim(picture, reference))
    for name in ("psnr_db", "ssim"):
        row[f"median_{name}"], row[f"worst_{name}"] = statistics.median(row[name]), min(row[name])
    return row


def run(bundle: Bundle, checkpoint: Checkpoint, results_directory: Path, count: int, steps: int) -> dict[str, Any]:
    """Measure every engine that runs here. Returns the stored document."""
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"Got {steps} steps. Expected 1 to {MAX_STEPS}.")
    texts = prompts(count)
    settings = {"bundle_id": bundle.bundle_id, "steps": steps, "prompts": texts}
    rows = Results(results_directory, "quality", results.name_of(bundle), settings)
    missing = [engine for engine in suite.engines(bundle) if rows.find(dict(zip(KEY, engine, strict=True))) is None]
    expected = reference(checkpoint, texts, steps) if missing else []
    for backend, precision in missing:
        try:
            pipe = Pipeline.load(bundle.path, backend, precision=precision, image_to_image=False)
            row = distances(pipe, texts, expected, steps)
        except SDTurboError as error:
            row = {"error": str(error)}
        rows.add(dict(zip(KEY, (backend, precision), strict=True)), row)
    return rows.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True, help="the checkpoint that the bundle was built from")
    parser.add_argument("--prompts", type=int, default=LEAST, help=f"how many, {LEAST} or more")
    parser.add_argument("--steps", type=int, default=1)
    results.add_option(parser)
    arguments = parser.parse_args()

    def measure() -> dict[str, Any]:
        bundle = Bundle.load(arguments.bundle)
        checkpoint = checkpoint_of(bundle, arguments.model)
        return run(bundle, checkpoint, arguments.results, arguments.prompts, arguments.steps)

    return report("bench-quality", measure)


if __name__ == "__main__":
    sys.exit(main())
