"""TensorRT plans for a whole bundle. Room is checked first. Each graph is built several times, and each try is compared with
the graph on the CPU and timed. The fastest right try goes into the bundle, with a report of its layers.

Not yet run on a GPU: tested on imitations of CUDA and TensorRT.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo import backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.device import DeviceSession
from sdturbo.backends.nvidia.gpus import Gpu, free_memory, make_current
from sdturbo.backends.nvidia.tensorrt import TrtBackend, TrtEngine, machine_key
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import TOKENIZER, Size, Stage
from sdturbo.bundle.plans import Plan, read_plans
from sdturbo.files import atomic_write
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import BOUNDS, relative_l2
from sdturbo_export.proof.walk import Arrays, Visit, Walk
from sdturbo_export.tensorrt.lean_runtime import load_lean_runtime
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name, plan_size, require_disk
from sdturbo_export.tensorrt.trt_from_onnx import Compiled, PlanOptions, trt_from_onnx

MOST_WORKSPACE_BYTES, LEAST_WORKSPACE_BYTES = 4 << 30, 256 << 20
RUNS = 20  # timed runs of a try
SHARES = {"text_encoder": 10, "denoiser": 50, "decoder": 25, "encoder": 15}  # rough shares of the time

_DEFAULT = PlanOptions()


@dataclass(frozen=True, slots=True)
class _Try:
    compiled: Compiled
    layers: str
    relative_l2: float
    median_ms: float


def compile_plans(
    bundle: Bundle,
    options: PlanOptions = _DEFAULT,
    *,
    device: str | None = None,
    tries: int = 2,
    timing_caches: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Compile every graph of the bundle that has no plan for this machine and these options yet. Returns the new bundle.

    options: without workspace_bytes a layer may use the memory that is free beside the weights, 4 GiB at most.
    tries: builds per graph. TensorRT measures kernels anew in each. timing_caches: the folder for its measurements.
    say: takes lines of progress.
    Each plan is in the bundle as soon as it is done. Raises BackendUnavailable, BuildError, ParityError.
    """
    if missing := options.library.missing("tensorrt"):
        raise missing
    backend = backends.connect(BackendChoice("tensorrt", device, bundle.precision))
    assert isinstance(backend, TrtBackend)
    if options.version_compatible:
        load_lean_runtime(backend.library.version)
    known = {(plan.stage, plan.batch_size, plan.key) for plan in read_plans(bundle)}
    jobs = list(product(bundle.batch_sizes, bundle.sizes))
    parts = {title(bundle, *job, name): SHARES[name] for job in jobs for name in bundle.stages}
    progress = Progress(parts, say)
    for size, pixels in jobs:
        for visit in references(bundle, size, pixels):
            stage = bundle.stages_at(*pixels)[visit.stage]
            graph = bundle.graph(stage.name, size, height=pixels[0], width=pixels[1])
            with progress.part(title(bundle, size, pixels, stage.name)):
                key = machine_key(backend.library, backend.gpu, bundle, graph)
                key = replace(key, hardware=options.hardware, version_compatible=options.version_compatible)
                if (stage.name, size, key) in known:
                    say("      there already")
                    continue
                free = free_memory(backend.gpu.index)
                room = require_room(bundle, graph, stage.name, backend.gpu, free, options.workspace_bytes)
                limited = replace(options, workspace_bytes=room)
                best = _best_try(bundle, graph, stage, size, backend, limited, tries, timing_caches, visit, progress)
                plan_file = plan_name(key, stage.name, size, best.compiled.plan)
                shown = pixels if bundle.declared[stage.name].is_sized else (0, 0)
                plan = Plan(plan_file, stage.name, size, key, best.relative_l2, best.median_ms, *shown)
                known.add((stage.name, size, key))
                report = str(PurePosixPath(plan_file).with_suffix(".layers.json"))
                bundle = add_plans(bundle, {plan: best.compiled.plan}, {report: best.layers.encode()})
                say(f"      {best.median_ms:.2f} ms, relative L2 distance to the CPU {best.relative_l2:.1e}")
    return bundle


def title(bundle: Bundle, batch_size: int, size: Size, stage: str) -> str:
    """The part of the progress. size: (height, width), which is named where the bundle has several."""
    of_size = f" and {size[1]}x{size[0]} pixels" if len(bundle.sizes) > 1 else ""
    return f"{stage} at batch size {batch_size}{of_size}"


def references(bundle: Bundle, batch_size: int, size: Size | None = None) -> Iterator[Visit]:
    """Each stage once, with the golden request's inputs, one seed per image, and the output of ONNX Runtime's CPU provider."""
    golden = bundle.golden
    tokenizer = PromptTokenizer((bundle.path / TOKENIZER).read_text(encoding="utf-8"))
    ids = np.repeat(tokenizer(golden.prompt).input_ids, batch_size, axis=0)
    cpu = backends.connect(BackendChoice("onnxruntime", precision=bundle.precision))
    height, width = size or bundle.sizes[0]
    stages = bundle.stages_at(height, width)

    def run(name: str, inputs: Arrays) -> NDArray[Any]:
        graph = bundle.graph(name, batch_size, height=height, width=width)
        (output,) = cpu.session(graph, stages[name], batch_size).run(inputs).values()
        return output

    seeds = [golden.seed + i for i in range(batch_size)]
    yield from Walk(stages, bundle.schedule, 1, ids, seeds).visits(run)


def require_room(bundle: Bundle, graph: Path, stage: str, gpu: Gpu, free: int, workspace_bytes: int | None) -> int:
    """The bytes that a layer may use. free: bytes on the GPU. workspace_bytes: as asked for.

    Raises BuildError if the GPU has no room for the weights twice (TensorRT's copy and the plan's) beside it, or the disk
    none for the plan.
    """
    weights = plan_size(bundle, graph)
    room = min(MOST_WORKSPACE_BYTES, free - 2 * weights) if workspace_bytes is None else workspace_bytes
    if room < LEAST_WORKSPACE_BYTES or free < 2 * weights + room:
        need = 2 * weights + max(room, LEAST_WORKSPACE_BYTES)
        raise BuildError(
            f"Compiling the {stage} needs about {need / 1e9:.1f} GB on the {gpu.name} (cuda:{gpu.index}), and"
            f" {free / 1e9:.1f} GB of {gpu.memory / 1e9:.1f} GB are free. nvidia-smi shows the processes that hold it."
            " Or lower --workspace-gb (0.25 at least)."
        )
    require_disk(bundle, graph, stage)
    return room


def _best_try(
    bundle: Bundle,
    graph: Path,
    stage: Stage,
    batch_size: int,
    backend: TrtBackend,
    options: PlanOptions,
    count: int,
    timing_caches: Path,
    reference: Visit,
    progress: Progress,
) -> _Try:
    """The fastest of `count` builds whose output is within the precision's bound. The first uses the cached timings."""
    bound = BOUNDS[bundle.precision]
    cache = timing_caches / f"tensorrt-{backend.library.version}-{backend.device.replace(':', '')}.timings"
    cached = cache.read_bytes() if cache.is_file() else b""
    tries: list[_Try] = []
    for i in range(count):
        make_current(backend.gpu.index)
        compiled = trt_from_onnx(
            graph, options, b"" if i else cached, lambda done, i=i: progress.share((i + done) / count)
        )
        # these bytes are trusted: we have just made them
        session = backend.open(compiled.plan, stage, batch_size, graph, host_code=options.version_compatible)
        tries.append(_measure(session, compiled, reference))
        del session
    right = [attempt for attempt in tries if attempt.relative_l2 <= bound]
    if not right:
        raise ParityError(
            f"None of {count} plans of the {stage.name} is right: relative L2 distance to the CPU"
            f" {', '.join(f'{attempt.relative_l2:.1e}' for attempt in tries)}, more than {bound:.0e}. The bundle is as it was."
            " Try another TensorRT, or --optimization-level 3. Please report it with the words of `sdturbo doctor`."
        )
    best = min(right, key=lambda attempt: attempt.median_ms)
    with atomic_write(cache) as file:
        file.write(best.compiled.timings)
    return best


def _measure(session: DeviceSession, compiled: Compiled, reference: Visit) -> _Try:
    engine = session.engine
    assert isinstance(engine, TrtEngine)
    (output,) = session.run(reference.inputs).values()
    times: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(reference.inputs)
        times.append((time.perf_counter() - start) * 1e3)
    return _Try(compiled, engine.layers(), relative_l2(output, reference.output), float(np.median(times)))
