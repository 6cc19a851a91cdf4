"""The distance of an engine's output from its reference, and the largest that is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}  # relative L2 distance of a stage
ROUNDED_WEIGHTS = 3e-3  # for float32 graphs whose weights are stored in float16, relative error 2^-11
INT8_STAGES = ("denoiser", "decoder")  # of a bundle in int8. The others are in fp32.


def bound(stage: str, precision: str, weight_format: str) -> float:
    """The largest relative L2 distance of a stage, in a bundle of that precision and form of weights.

    It is infinite for a stage in int8, which is held by its pictures instead.
    """
    if precision == "int8" and stage in INT8_STAGES:
        return float("inf")
    computed_in = "fp32" if precision == "int8" else precision
    return max(BOUNDS[computed_in], ROUNDED_WEIGHTS if weight_format == "fp16" else 0.0)


def relative_l2(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖output - expected‖ / ‖expected‖ in float64. It is infinite if anything is not finite."""
    difference = np.linalg.norm((output.astype(np.float64) - expected).ravel())
    value = float(difference / np.linalg.norm(expected.astype(np.float64).ravel()))
    return value if np.isfinite(value) else float("inf")
