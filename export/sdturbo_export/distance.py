"""How far an engine's output is from its reference, and how far it may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}  # relative L2 a stage


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖found - expected‖ / ‖expected‖ in float64; infinite if anything is not finite."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    value = float(difference / np.linalg.norm(expected.astype(np.float64).ravel()))
    return value if np.isfinite(value) else float("inf")
