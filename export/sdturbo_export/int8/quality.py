"""The gate: the distance of pictures in 8 bits from the same pictures in float32."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sdturbo.golden import difference
from sdturbo_export.errors import QualityError
from sdturbo_export.int8.trajectories import SeededPrompt

MIN_PSNR = 28.0  # dB, the median over the prompts
LEAST_PROMPTS = 32
_EQUAL_DB = 99.0  # stands for equal pictures: JSON has no infinity
_SIGMA, _RADIUS = 1.5, 5

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Score:
    """One picture against float32: PSNR (peak signal-to-noise ratio) in decibels, at most 99, and SSIM (structural
    similarity), 1 for equal pictures."""

    prompt: str
    seed: int
    steps: int
    psnr_db: float
    ssim: float


def score(prompt: SeededPrompt, picture: Picture, expected: Picture) -> Score:
    """Compare two uint8 (H, W, 3) pictures of one prompt and seed."""
    psnr = round(min(difference(picture, expected)[0], _EQUAL_DB), 2)
    return Score(prompt.prompt, prompt.seed, prompt.steps, psnr, round(ssim(picture, expected), 4))


def ssim(picture: Picture, other: Picture) -> float:
    """Structural similarity of two uint8 (H, W, 3) pictures: Wang et al. 2004, 11×11 Gaussian window, mean of the channels."""
    x, y = (torch.from_numpy(picture).permute(2, 0, 1)[:, None].double() for picture in (picture, other))
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()

    def local_mean(z: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(z, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """The scores as the bundle states them. `passed` is the gate's verdict."""
    psnr, likeness = [picture.psnr_db for picture in scores], [picture.ssim for picture in scores]
    return {
        "reference": "the same graphs in fp32, onnxruntime",
        "prompts": len(scores),
        "median_psnr_db": round(statistics.median(psnr), 2),
        "worst_psnr_db": min(psnr),
        "median_ssim": round(statistics.median(likeness), 4),
        "worst_ssim": min(likeness),
        "min_psnr_db": MIN_PSNR,
        "passed": statistics.median(psnr) >= MIN_PSNR,
    }


def require_quality(quality: dict[str, Any], name: str, *, allow_low_quality: bool) -> None:
    """Raise QualityError for a `summary` below the gate, unless that is allowed. name: of the checkpoint."""
    if quality["passed"] or allow_low_quality:
        return
    raise QualityError(
        f"In int8 the pictures of {name} are {quality['median_psnr_db']:.1f} dB from fp32 (median PSNR of"
        f" {quality['prompts']} prompts), below {MIN_PSNR:.0f} dB. No bundle was written."
        " Build without --precision, calibrate with prompts of the model's own kind (--calibration FILE), or pass"
        " --allow-low-quality to build it all the same."
    )
