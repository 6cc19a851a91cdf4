"""Time of whole requests on this machine: medians and p95 of every part, from prompt string to picture; pictures a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdturbo.errors import SDTurboError
from sdturbo.pipeline import Pipeline
from sdturbo.request import Request
from sdturbo.result import Result

ENGINES = ("text_encoder", "encoder", "denoiser", "decoder", "engines")


def measure(
    load: Callable[[], Pipeline],
    *,
    runs: int,
    num_inference_steps: int,
    batch_size: int = 1,
    throughput: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Load a pipeline, make one request, then `runs` more with new prompts each, so that every stage runs every time.

    A request draws `batch_size` pictures, each of its own prompt. Times are milliseconds. "outside_engines" is the request
    less its engine stages: tokenise, noise, copies, PIL. throughput: then measure `pictures_per_second` too, over `runs`
    requests called one after another and as many streamed. tick is called after every request.
    """
    start = time.perf_counter()
    pipe = load()
    load_ms = (time.perf_counter() - start) * 1e3
    timings: list[dict[str, float]] = []
    for one in _requests("timed", runs + 1, num_inference_steps, batch_size):
        timings.append(pipe(**one).timings)
        tick()
    first = timings.pop(0)
    for one in timings:
        one["outside_engines"] = one["total"] - sum(one.get(name, 0.0) for name in ENGINES)
    parts = {
        name: {
            "median": float(np.median([one[name] for one in timings])),
            "p95": float(np.percentile([one[name] for one in timings], 95)),
        }
        for name in timings[0]
    }
    found: dict[str, Any] = {
        "bundle_id": pipe.bundle.bundle_id,
        "model": pipe.bundle.model.get("name"),
        "decoder": pipe.bundle.decoder,
        "backend": pipe.backend.name,
        "backend_version": pipe.backend.version,
        "device": pipe.backend.device,
        "precision": pipe.backend.precision,
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
        "runs": runs,
        "load_ms": load_ms,
        "first_image_ms": first["total"],
        "peak_memory_mb": _memory_mb("VmHWM"),
        "anonymous_memory_mb": _memory_mb("RssAnon"),
        "parts_ms": parts,
    }
    if throughput:
        found["pictures_per_second"] = pictures_per_second(
            pipe, runs=runs, num_inference_steps=num_inference_steps, batch_size=batch_size, tick=tick
        )
    return found


def pictures_per_second(
    pipe: Pipeline,
    *,
    runs: int,
    num_inference_steps: int,
    batch_size: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Pictures a second over `runs` requests with new prompts each, "calls" one after another and "stream", `Pipeline.stream`.

    The first request is part of the time, and so are the stream's start and end.
    """

    def calls(requests: Iterable[Request]) -> Iterator[Result | SDTurboError]:
        return (pipe(**one) for one in requests)

    found: dict[str, float] = {}
    for name, draw in (("calls", calls), ("stream", pipe.stream)):
        start = time.perf_counter()
        for outcome in draw(_requests(name, runs, num_inference_steps, batch_size)):
            if isinstance(outcome, SDTurboError):
                raise outcome
            tick()
        found[name] = runs * batch_size / (time.perf_counter() - start)
    return found


def _requests(kind: str, count: int, num_inference_steps: int, batch_size: int) -> Iterator[Request]:
    for i in range(count):
        prompts = [f"picture {j} of {kind} request {i}" for j in range(batch_size)]
        yield {"prompt": prompts, "seed": i, "num_inference_steps": num_inference_steps}


def _memory_mb(field: str) -> float | None:
    """A field of this process's status: VmHWM is the most resident memory it had, mapped files included; RssAnon what it
    holds now without them."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
