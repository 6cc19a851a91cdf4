"""Times of whole requests on this machine, from prompt to picture: median and 95th percentile (p95) per part, throughput."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from sdturbo.cpu import proc_field
from sdturbo.errors import SDTurboError
from sdturbo.pipeline import Pipeline
from sdturbo.request import Request
from sdturbo.result import Result, origin

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
    """Load a pipeline, make one request, then `runs` more. Each has new prompts, so that every stage runs every time.

    A request draws `batch_size` pictures, each of its own prompt. Times are milliseconds. "outside_engines" is the request
    without its compiled stages: tokenizer, noise, copies, PIL. throughput: measure `pictures_per_second` too.
    tick: called after every request.
    """
    start = time.perf_counter()
    pipe = load()
    load_ms = (time.perf_counter() - start) * 1e3
    timings: list[dict[str, float]] = []
    for request in _requests("timed", runs + 1, num_inference_steps, batch_size):
        parts = pipe(**request).timings
        parts["outside_engines"] = parts["total"] - sum(parts.get(name, 0.0) for name in ENGINES)
        timings.append(parts)
        tick()
    first = timings.pop(0)
    by_part = {name: [parts[name] for parts in timings] for name in first}
    figures: dict[str, Any] = {
        **origin(pipe.bundle, pipe.backend),
        "lost_recordings": list(pipe.lost_recordings),
        "model": pipe.bundle.model.get("name"),
        "backend_version": pipe.backend.version,
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
        "runs": runs,
        "load_ms": load_ms,
        "first_image_ms": first["total"],
        "peak_memory_mb": _memory_mb("VmHWM"),
        "anonymous_memory_mb": _memory_mb("RssAnon"),
        "parts_ms": {
            name: {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))}
            for name, times in by_part.items()
        },
    }
    if throughput:
        figures["pictures_per_second"] = pictures_per_second(
            pipe, runs=runs, num_inference_steps=num_inference_steps, batch_size=batch_size, tick=tick
        )
    return figures


def pictures_per_second(
    pipe: Pipeline,
    *,
    runs: int,
    num_inference_steps: int,
    batch_size: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Pictures per second over `runs` requests with new prompts each. "calls": one after another. "stream": `Pipeline.stream`.

    The time contains the first request, and the stream's start and end.
    """

    def calls(requests: Iterable[Request]) -> Iterator[Result | SDTurboError]:
        return (pipe(**request) for request in requests)

    rates: dict[str, float] = {}
    for name, draw in (("calls", calls), ("stream", pipe.stream)):
        start = time.perf_counter()
        for outcome in draw(_requests(name, runs, num_inference_steps, batch_size)):
            if isinstance(outcome, SDTurboError):
                raise outcome
            tick()
        rates[name] = runs * batch_size / (time.perf_counter() - start)
    return rates


def _requests(kind: str, count: int, num_inference_steps: int, batch_size: int) -> Iterator[Request]:
    for i in range(count):
        prompts = [f"picture {j} of {kind} request {i}" for j in range(batch_size)]
        yield {"prompt": prompts, "seed": i, "num_inference_steps": num_inference_steps}


def _memory_mb(field: str) -> float | None:
    """A field of this process's status. VmHWM: its peak of resident memory, with mapped files. RssAnon: now, without them."""
    kilobytes = proc_field("/proc/self/status", field).partition(" ")[0]
    return int(kilobytes) / 1024 if kilobytes else None
