"""Time of whole requests on this machine: medians and p95 of every part, from prompt string to picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sdturbo.pipeline import Pipeline

ENGINES = ("text_encoder", "encoder", "denoiser", "decoder", "engines")


def measure(
    load: Callable[[], Pipeline], *, runs: int, num_inference_steps: int, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Load a pipeline, draw one picture, then `runs` more with a new prompt each, so that every stage runs every time.

    Times are milliseconds. "outside_engines" is the request less its engine stages: tokenise, noise, copies, PIL.
    tick is called after every picture.
    """
    start = time.perf_counter()
    pipe = load()
    load_ms = (time.perf_counter() - start) * 1e3
    first = pipe("the first picture", num_inference_steps=num_inference_steps).timings
    tick()
    timings: list[dict[str, float]] = []
    for i in range(runs):
        timings.append(pipe(f"picture number {i}", seed=i, num_inference_steps=num_inference_steps).timings)
        tick()
    for one in timings:
        one["outside_engines"] = one["total"] - sum(one.get(name, 0.0) for name in ENGINES)
    parts = {
        name: {
            "median": float(np.median([one[name] for one in timings])),
            "p95": float(np.percentile([one[name] for one in timings], 95)),
        }
        for name in timings[0]
    }
    return {
        "bundle_id": pipe.bundle.bundle_id,
        "model": pipe.bundle.model.get("name"),
        "decoder": pipe.bundle.decoder,
        "backend": pipe.backend.name,
        "backend_version": pipe.backend.version,
        "device": pipe.backend.device,
        "precision": pipe.backend.precision,
        "num_inference_steps": num_inference_steps,
        "runs": runs,
        "load_ms": load_ms,
        "first_image_ms": first["total"],
        "peak_memory_mb": _peak_memory_mb(),
        "parts_ms": parts,
    }


def _peak_memory_mb() -> float | None:
    """VmHWM of this process: the most resident memory it had, mapped files included."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
