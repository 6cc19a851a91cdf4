"""The engines' part of the GPU acceptance: graphs and plans, parity of each stage, stages alone and joined."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.lines import Extent, Line, guarded
from benchmarks.gpu.runs import TOKENS, milliseconds, summary
from sdturbo import backends
from sdturbo.backends.device import PROGRAM_STAGES, DeviceProgram
from sdturbo.backends.nvidia.gpus import make_current
from sdturbo.backends.nvidia.library import TENSORRT, installed_library
from sdturbo.backends.recording import TOLERANCE, same_values
from sdturbo.bundle import Bundle
from sdturbo.errors import BackendUnavailable
from sdturbo_export.proof.distance import BOUNDS, relative_l2
from sdturbo_export.proof.walk import Walk, run_of

FUSED_ATTENTION = ("text_encoder", "denoiser")  # the autoencoder's one attention, of head 512, is not fused


class _ParsedError(Exception):
    """Ends a build at its first step: the graph was parsed."""


def parse(bundle: Bundle, extent: Extent) -> Iterator[Line]:
    """Every graph is parsed by TensorRT before the first build: a refusal is known in seconds, not after the other builds."""
    make_current(extent.index)
    for size in bundle.batch_sizes:
        for stage in bundle.stages:
            name = f"parsed, {stage} at batch size {size}"
            yield from guarded(name, functools.partial(_parse, name, bundle.graph(stage, size)))


def _parse(name: str, graph: Path) -> Iterator[Line]:
    from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx

    def end(_: float) -> None:
        raise _ParsedError

    start = time.perf_counter()
    library = installed_library() or TENSORRT
    capabilities = library.targets((), "fp16")[-1] if library.ahead else ()
    with suppress(_ParsedError):
        trt_from_onnx(graph, PlanOptions(library=library, capabilities=capabilities), b"", end)
    yield Line(name, f"{time.perf_counter() - start:.1f} s", "no error", True)


def compile_plans(bundle: Bundle, extent: Extent, timing_caches: Path) -> Iterator[Line]:
    """Compile the missing plans. Each was compared with the graph on the CPU when it was made, unless it was made ahead."""
    from sdturbo_export.tensorrt.ahead import compile_ahead
    from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions
    from sdturbo_export.tensorrt.trt_plans import compile_plans as compile_all

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    start, library = time.perf_counter(), installed_library() or TENSORRT
    if library.ahead:
        compile_ahead(bundle, PlanOptions(library=library), say=say)
    else:
        compile_all(bundle, device=extent.device, timing_caches=timing_caches, say=say)
    yield Line("plans compiled in", f"{time.perf_counter() - start:.0f} s")


def parity_of_plans(bundle: Bundle, extent: Extent) -> Iterator[Line]:
    """The distance of each plan that is there, measured when it was made. Of all stages now if plans were made ahead."""
    from sdturbo.bundle.plans import read_plans

    plans = read_plans(bundle)
    if any(plan.relative_l2 is None for plan in plans):
        yield from parity(bundle, extent)
    for plan in plans:
        if plan.relative_l2 is None:
            continue
        yield _parity(plan.stage, plan.batch_size, plan.relative_l2, bundle, extent, f", plan {plan.median_ms:.2f} ms")


def parity(bundle: Bundle, extent: Extent) -> Iterator[Line]:
    """Each stage against the graph on the CPU, where no plan was compared when it was made."""
    from sdturbo_export.tensorrt.trt_plans import references

    backend = backends.connect(extent.choice, bundle)
    for size in bundle.batch_sizes:
        for visit in references(bundle, size):

            def compare(visit: Any = visit, size: int = size) -> Iterator[Line]:
                session = backend.session(
                    bundle.graph(visit.stage, size, form=backend.form), bundle.stages[visit.stage], size
                )
                (output,) = session.run(visit.inputs).values()
                yield _parity(visit.stage, size, relative_l2(output, visit.output), bundle, extent)

            yield from guarded(f"parity, {visit.stage} at batch size {size}", compare)


def _parity(stage: str, size: int, distance: float, bundle: Bundle, extent: Extent, more: str = "") -> Line:
    """The CPU sums attention in fp32. A fused kernel may sum it in fp16, and then the words of the limit say so."""
    bound = BOUNDS[bundle.precision]
    attention = ", attention included, which a fused kernel may sum in fp16"
    named = attention if bundle.precision == "fp16" and stage in FUSED_ATTENTION else ""
    measured = extent.figure(f"relative L2 distance {distance:.1e}{more}")
    expected = f"<= {bound:.0e} to ONNX Runtime's CPU{named}"
    return Line(f"parity, {stage} at batch size {size}", measured, expected, extent.verdict(distance <= bound))


def stages(bundle: Bundle, extent: Extent, size: int) -> Iterator[Line]:
    """Each stage alone at a batch size, with its copies in and out. Then all joined, launched plainly and as one CUDA graph."""
    backend = backends.connect(extent.choice, bundle)
    sessions: dict[str, Any] = {
        name: backend.session(bundle.graph(name, size, form=backend.form), bundle.stages[name], size)
        for name in PROGRAM_STAGES
    }
    ids = np.random.default_rng(0).integers(0, TOKENS, (size, 77))
    walk = Walk(bundle.stages, bundle.schedule, 1, ids, list(range(size)))
    at = f" at batch size {size}"

    def timed(what: str, call: Callable[[int], Any]) -> Iterator[Line]:
        yield Line(what, extent.figure(summary(milliseconds(call, extent.runs))))

    for visit in walk.visits(run_of(sessions), until="decoder"):
        session, inputs = sessions[visit.stage], visit.inputs
        what = f"latency, {visit.stage}{at}"
        yield from guarded(what, functools.partial(timed, what, lambda _, s=session, i=inputs: s.run(i)))
    first = walk.inputs("text_encoder", 0) | {"latents": walk.inputs("denoiser", 0)["latents"]}
    program = backend.program(sessions, bundle.steps(1))
    if not isinstance(program, DeviceProgram):
        raise BackendUnavailable(f"The backend {extent.backend!r} does not keep a request on its device.")
    yield Line(f"stages joined and replayed as one{at}", str(program.replays), "True", program.replays)

    def joined() -> Iterator[Line]:
        distance = relative_l2(program.run(first, replay=False)["latents"], walk.outputs["denoiser"])
        measured = f"relative L2 distance {distance:.1e}"
        yield Line(f"joined against stage by stage{at}", measured, "<= 1e-3", distance <= 1e-3)

    def repeated() -> Iterator[Line]:
        before, after = program.run(first), program.run(first)
        same = all(same_values(after[name], before[name]) for name in before)
        yield Line(f"run 1 equals run 2{at}", str(same), f"True, within {TOLERANCE:.0e} of relative L2 distance", same)

    yield from guarded(f"joined against stage by stage{at}", joined)
    yield from guarded(f"run 1 equals run 2{at}", repeated)
    for replay, text in ((False, "without CUDA graph"), (True, "with CUDA graph")):
        what = f"latency, three stages {text}{at}"
        yield from guarded(what, functools.partial(timed, what, lambda _, r=replay: program.run(first, replay=r)))
