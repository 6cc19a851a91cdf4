"""TensorRT plans for a whole bundle: room first, then several tries a graph, each compared with the graph on the CPU and
timed; the fastest that is right goes into the bundle, with a report of its layers.

Not yet run on a GPU: tested on imitations of CUDA and TensorRT.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo import backends
from sdturbo.backends import EngineChoice
from sdturbo.backends.device import DeviceSession
from sdturbo.backends.nvidia.gpus import Gpu, free_memory, make_current
from sdturbo.backends.nvidia.tensorrt import TrtBackend, TrtEngine, machine_key
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import TOKENIZER, Stage
from sdturbo.bundle.plans import Plan, PlanKey, read_plans
from sdturbo.files import atomic_write
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import BOUNDS, relative_l2
from sdturbo_export.proof.walk import Arrays, Visit, bundle_walk
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx

MOST_WORKSPACE, LEAST_WORKSPACE = 4 << 30, 256 << 20
RUNS = 20  # timed runs of a try
WEIGHTS = {"text_encoder": 10, "denoiser": 50, "decoder": 25, "encoder": 15}  # rough shares of the time


@dataclass(frozen=True, slots=True)
class _Try:
    data: bytes
    timings: bytes
    layers: str
    relative_l2: float
    median_ms: float


def compile_plans(
    bundle: Bundle,
    *,
    device: str | None = None,
    workspace: int | None = None,
    optimization_level: int = 4,
    hardware: str = "none",
    version_compatible: bool = False,
    tries: int = 2,
    store: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Compile every graph of the bundle that has no plan for this machine and these options yet; returns the new bundle.

    workspace: bytes a layer may use on the GPU; None takes what is free beside the weights, 4 GiB at most. tries: builds a
    graph; TensorRT measures kernels anew in each. store: where timing caches are kept. say: takes lines of progress.
    Each plan is in the bundle as soon as it is done. Raises BackendUnavailable, BuildError, ParityError.
    """
    backend = backends.connect(EngineChoice("tensorrt", device, bundle.precision))
    assert isinstance(backend, TrtBackend)
    options = PlanOptions(0, optimization_level, hardware, version_compatible)
    known = {(plan.stage, plan.batch_size, plan.key) for plan in read_plans(bundle)}
    parts = [(f"{name} at batch size {size}", WEIGHTS[name]) for size in bundle.batch_sizes for name in bundle.stages]
    progress = Progress(parts, say)
    for size in bundle.batch_sizes:
        for visit in references(bundle, size):
            stage = bundle.stages[visit.stage]
            with progress.part(f"{stage.name} at batch size {size}"):
                key = machine_key(backend.version, backend.gpu, bundle, stage.name, size)
                key = replace(key, hardware=hardware, version_compatible=version_compatible)
                if (stage.name, size, key) in known:
                    say("      there already")
                    continue
                room = require_room(bundle, stage, size, backend.gpu, free_memory(backend.gpu.index), workspace)
                limited = replace(options, workspace=room)
                best = _best_try(bundle, stage, size, backend, limited, tries, store, visit, progress)
                bundle = _publish(bundle, stage.name, size, key, best)
                say(f"      {best.median_ms:.2f} ms, relative L2 to the CPU {best.relative_l2:.1e}")
    return bundle


def references(bundle: Bundle, batch_size: int) -> Iterator[Visit]:
    """Each stage once: inputs of the golden request, one seed per row, and what ONNX Runtime's CPU provider makes of them."""
    golden = bundle.golden
    tokenizer = PromptTokenizer((bundle.path / TOKENIZER).read_text(encoding="utf-8"))
    ids = np.repeat(tokenizer(golden.prompt).input_ids, batch_size, axis=0)
    cpu = backends.connect(EngineChoice("onnxruntime", precision=bundle.precision))

    def run(name: str, inputs: Arrays) -> NDArray[Any]:
        stage = bundle.stages[name]
        (output,) = cpu.session(bundle.graph(name, batch_size), stage, batch_size).run(inputs).values()
        return output

    seeds = [golden.seed + i for i in range(batch_size)]
    yield from bundle_walk(bundle, ids, seeds, 1).visits(run)


def require_room(bundle: Bundle, stage: Stage, batch_size: int, gpu: Gpu, free: int, workspace: int | None) -> int:
    """The workspace in bytes. free: bytes on the GPU.

    Raises BuildError if weights twice (TensorRT's copy and the plan's) and workspace do not fit into it, or the plan not
    onto the disk.
    """
    weights = sum(bundle.files[name][1] for name in bundle.graph_files(bundle.graph(stage.name, batch_size)))
    room = min(MOST_WORKSPACE, free - 2 * weights) if workspace is None else workspace
    if room < LEAST_WORKSPACE or free < 2 * weights + room:
        need = 2 * weights + max(room, LEAST_WORKSPACE)
        raise BuildError(
            f"Compiling the {stage.name} needs about {need / 1e9:.1f} GB on the {gpu.name} (cuda:{gpu.index}), and"
            f" {free / 1e9:.1f} GB of {gpu.memory / 1e9:.1f} GB are free. nvidia-smi shows who holds it; or lower"
            " --workspace-gb (0.25 at least)."
        )
    disk = shutil.disk_usage(bundle.path).free
    if disk < 1.2 * weights:
        raise BuildError(
            f"The plan of the {stage.name} needs about {1.2 * weights / 1e9:.1f} GB in {bundle.path}, and {disk / 1e9:.1f} GB"
            " are free. Free some space and run the same command again: finished plans are kept."
        )
    return room


def _best_try(
    bundle: Bundle,
    stage: Stage,
    batch_size: int,
    backend: TrtBackend,
    options: PlanOptions,
    tries: int,
    store: Path,
    reference: Visit,
    progress: Progress,
) -> _Try:
    """The fastest of several builds whose output is within the precision's bound. The first uses the stored timings."""
    graph = bundle.graph(stage.name, batch_size)
    cache = store / f"tensorrt-{backend.version}-{backend.device.replace(':', '')}.timings"
    stored = cache.read_bytes() if cache.is_file() else b""
    found: list[_Try] = []
    for i in range(tries):
        make_current(backend.gpu.index)
        compiled = trt_from_onnx(
            graph, options, b"" if i else stored, lambda done, i=i: progress.share((i + done) / tries)
        )
        session = backend.open(
            compiled.plan, stage, batch_size, graph, host_code=options.version_compatible
        )  # our own bytes, just made
        found.append(_measure(session, reference.inputs, reference.output, compiled.plan, compiled.timings))
        del session
    right = [one for one in found if one.relative_l2 <= BOUNDS[bundle.precision]]
    if not right:
        raise ParityError(
            f"None of {tries} plans of the {stage.name} is right: relative L2 to the CPU"
            f" {', '.join(f'{one.relative_l2:.1e}' for one in found)}, more than {BOUNDS[bundle.precision]:.0e}. The bundle"
            " is as it was. Try another TensorRT, or --optimization-level 3; please report it with `sdturbo doctor`'s words."
        )
    best = min(right, key=lambda one: one.median_ms)
    with atomic_write(cache) as file:
        file.write(best.timings)
    return best


def _measure(session: DeviceSession, inputs: Arrays, expected: NDArray[Any], data: bytes, timings: bytes) -> _Try:
    engine = session.engine
    assert isinstance(engine, TrtEngine)
    (output,) = session.run(inputs).values()
    times: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(inputs)
        times.append((time.perf_counter() - start) * 1e3)
    return _Try(data, timings, engine.layers(), relative_l2(output, expected), float(np.median(times)))


def _publish(bundle: Bundle, stage: str, batch_size: int, key: PlanKey, best: _Try) -> Bundle:
    name = plan_name(key, stage, batch_size, best.data)
    plan = Plan(name, stage, batch_size, key, best.relative_l2, best.median_ms)
    report = str(PurePosixPath(name).with_suffix(".layers.json"))
    return add_plans(bundle, {plan: best.data}, {report: best.layers.encode()})
