"""The requests' part of the GPU acceptance: whole requests from prompt to pixels, and what they take of time and memory."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.gpu import limits
from benchmarks.gpu.lines import Extent, Line, guarded
from benchmarks.gpu.runs import WARM_UP, milliseconds, summary
from sdturbo import Pipeline, Request, backends
from sdturbo.backends.nvidia.gpus import Gpu, find_gpus, free_memory
from sdturbo.bundle import Bundle
from sdturbo.commands.bench import pictures_per_second
from sdturbo.errors import SDTurboError
from sdturbo.golden import golden_distance

SAMPLE_SECONDS = 0.002


def gpu_of(extent: Extent) -> Gpu:
    return find_gpus()[extent.index]


class PeakMemory:
    """The most bytes that were taken on the GPU at once since `with` began, sampled in a thread. 0 in a dry run.

    Bytes that another process takes meanwhile count too.
    """

    def __init__(self, extent: Extent) -> None:
        self._extent, self._end = extent, threading.Event()
        self._before = self._least = _free(extent)
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._least = min(self._least, _free(self._extent))

    @property
    def bytes(self) -> int:
        return self._before - self._least

    def _sample(self) -> None:
        while not self._extent.dry and not self._end.wait(SAMPLE_SECONDS):
            self._least = min(self._least, _free(self._extent))


def requests(path: Path, extent: Extent) -> Iterator[Line]:
    """Load and memory at batch size 1, golden picture, latency against the limit, from an image, batches, stream, soak."""
    start = time.perf_counter()
    with PeakMemory(extent) as memory:
        bundle = Bundle.load(path, trust_unchanged=True)  # as Pipeline.load does
        pipe = _pipeline(bundle, extent, (bundle.batch_sizes[0],))
        seconds = time.perf_counter() - start
        for i in range(3):
            pipe(f"picture number {i}", seed=i, num_images_per_prompt=bundle.batch_sizes[0], output_type="np")
    yield from _load(bundle, extent, seconds, memory.bytes)
    lost = ", ".join(pipe.lost_recordings) or "none"
    yield Line("recordings that were lost", lost, "none", not pipe.lost_recordings)
    parts = {
        "golden picture": _golden,
        "latency, whole request, one step": _latency,
        "image-to-image": functools.partial(_from_image, "image-to-image"),
        "inpainting": functools.partial(_from_image, "inpainting"),
        "streamed against called": _streamed,
        "throughput": _throughput,
        "soak": _soak,
    }
    for name, part in parts.items():
        yield from guarded(name, functools.partial(part, pipe, extent))
    for size in bundle.batch_sizes[1:]:
        what = f"latency, whole request of {size} pictures"
        yield from guarded(what, functools.partial(_batch, what, bundle, extent, size))


def _pipeline(bundle: Bundle, extent: Extent, sizes: tuple[int, ...]) -> Pipeline:
    """With these batch sizes alone. The backend gets the whole bundle, whose plans are of all batch sizes."""
    backend = backends.connect(extent.choice, bundle)
    return Pipeline(dataclasses.replace(bundle, batch_sizes=sizes), backend)


def _full(bundle: Bundle) -> bool:
    return sum(size for _, size in bundle.files.values()) > limits.FULL_SIZE


def _load(bundle: Bundle, extent: Extent, seconds: float, taken: int) -> Iterator[Line]:
    """The limits are for the full-size model in fp16, the one of the load for plans."""
    judged = _full(bundle) and bundle.precision == "fp16" and bundle.batch_sizes[0] == 1
    of = "" if judged else ", for the full-size model in fp16 at batch size 1"
    plans = extent.backend in ("tensorrt", "null")
    ok = extent.verdict(seconds <= limits.LOAD) if judged and plans else None
    yield Line(
        "load time", extent.figure(f"{seconds:.1f} s"), f"<= {limits.LOAD:.0f} s from plans{of}" if plans else "", ok
    )
    ok = extent.verdict(taken <= limits.MEMORY) if judged else None
    yield Line("GPU memory, peak", extent.figure(f"{taken / 1e9:.2f} GB"), f"<= {limits.MEMORY / 1e9:.1f} GB{of}", ok)


def _golden(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    psnr, least = golden_distance(pipe), pipe.bundle.golden.min_psnr
    yield Line("golden picture", extent.figure(f"{psnr:.1f} dB"), f">= {least:.0f} dB", extent.verdict(psnr >= least))


def _latency(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    times = milliseconds(lambda i: pipe(f"picture number {i}", seed=i, output_type="np"), extent.runs)
    card = "" if extent.dry else gpu_of(extent).name
    limit, expected = limits.latency_limit(extent.backend, card)
    full = _full(pipe.bundle)
    ok = extent.verdict(float(np.median(times)) <= limit) if full else None
    expected += "" if full else ", for the full-size model"
    yield Line("latency, whole request, one step", extent.figure(summary(times)), expected, ok)
    floor = limits.known(limits.ROOFLINES, card)
    yield Line("roofline of this GPU", extent.figure(f"{floor:.2f} ms" if floor else "not known for this GPU"))


def _batch(what: str, bundle: Bundle, extent: Extent, size: int) -> Iterator[Line]:
    pipe = _pipeline(bundle, extent, (size,))
    batch = milliseconds(
        lambda i: pipe([f"picture {j} of request {i}" for j in range(size)], seed=i, output_type="np"),
        max(3, extent.runs // size),
    )
    yield Line(what, extent.figure(summary(batch)))


def _from_image(kind: str, pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    """A request with one step from an image: as one recording, the same picture as stage by stage, and its time.

    The recording of inpainting is made by the first request.
    """
    height, width = pipe.bundle.sizes[0]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    given: Request = {
        "prompt": "a picture",
        "image": image,
        "num_inference_steps": 2,
        "strength": 0.5,
        "output_type": "np",
    }
    if kind == "inpainting":
        mask = np.zeros((height, width), np.bool_)
        mask[: height // 2] = True
        given["mask_image"] = mask
    result = pipe(**given)
    lost = [title for title in result.lost_recordings if title.startswith(kind)]
    recorded = "engines" in result.timings and not lost
    yield Line(f"{kind} as one recording", str(recorded), "True", recorded)
    (staged,) = pipe.stream([given])
    if isinstance(staged, SDTurboError):
        raise staged
    most = int(np.abs(staged.images.astype(int) - result.images).max())
    yield Line(f"{kind} against stage by stage", f"pixels differ by {most} of 255", "<= 1", most <= 1)
    each: list[Request] = [{**given, "prompt": f"picture number {i}", "seed": i} for i in range(extent.runs + WARM_UP)]
    times = milliseconds(lambda i: pipe(**each[i]), extent.runs)
    yield Line(f"latency, {kind}, one step", extent.figure(summary(times)))


def _streamed(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    """Requests under way at the same time: the same pictures as those of calls."""
    given: list[Request] = [{"prompt": f"picture number {i}", "seed": i, "output_type": "np"} for i in range(8)]
    most = 0
    for result, request in zip(pipe.stream(given), given, strict=True):
        if isinstance(result, SDTurboError):
            raise result
        most = max(most, int(np.abs(result.images.astype(int) - pipe(**request).images).max()))
    yield Line("streamed against called", f"pixels differ by {most} of 255", "<= 1", most <= 1)


def _throughput(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    for name, rate in pictures_per_second(pipe, runs=extent.runs, num_inference_steps=1).items():
        yield Line(f"throughput, {name}", extent.figure(f"{rate:.1f} pictures/s"))


def _soak(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    free, resident = _free(extent), _resident()
    for i in range(extent.soak):
        pipe(f"picture number {i}", seed=i, output_type="np")
    grown, host = free - _free(extent), _resident() - resident
    what = f"soak, {extent.soak} requests: memory of the"
    yield Line(
        f"{what} GPU",
        extent.figure(f"{grown / 1e6:+.1f} MB"),
        f"<= {limits.GROWTH / 1e6:.0f} MB",
        extent.verdict(grown <= limits.GROWTH),
    )
    limit = f"<= {limits.HOST_GROWTH / 1e6:.0f} MB"
    yield Line(f"{what} process", f"{host / 1e6:+.1f} MB", limit, extent.verdict(host <= limits.HOST_GROWTH))


def _free(extent: Extent) -> int:
    """Free bytes on the GPU. 0 in a dry run, which has no use for them."""
    return 0 if extent.dry else free_memory(extent.index)


def _resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096
