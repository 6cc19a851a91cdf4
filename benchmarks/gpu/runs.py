"""Runs of a stage or a request: inputs drawn at random, and times of repeated calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import Stage

TOKENS = 49408  # of CLIP's vocabulary
WARM_UP = 3  # runs that are not counted


def random_inputs(stage: Stage, batch_size: int) -> dict[str, NDArray[Any]]:
    """Token ids, pixels and standard normals of the stage's dtypes and shapes, the same at each call. Scalars are 0."""
    rng = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {}
    for spec in stage.inputs:
        shape = spec.shape_at(batch_size)
        if not shape:
            inputs[spec.name] = np.zeros((), spec.dtype)
        elif spec.dtype == "int64":
            inputs[spec.name] = rng.integers(0, TOKENS, shape)
        elif spec.dtype == "uint8":
            inputs[spec.name] = rng.integers(0, 256, shape, np.uint8)
        else:
            inputs[spec.name] = rng.standard_normal(shape, np.float32).astype(spec.dtype)
    return inputs


def milliseconds(call: Callable[[int], object], runs: int) -> list[float]:
    """Times of `runs` calls after `WARM_UP` others. call: takes the number of the call."""
    times: list[float] = []
    for i in range(WARM_UP + runs):
        start = time.perf_counter()
        call(i)
        times.append((time.perf_counter() - start) * 1e3)
    return times[WARM_UP:]


def summary(times: Sequence[float]) -> str:
    return f"median {np.median(times):.2f} ms, p99 {np.percentile(times, 99):.2f} ms, {len(times)} runs"
