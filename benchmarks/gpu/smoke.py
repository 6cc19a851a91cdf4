"""Check our CUDA code on this GPU: memory, streams, CUDA graphs and threads, with three small kernels as stages.

    python -m benchmarks.gpu.smoke                # on a machine with a GPU and NVRTC, CUDA's compiler, without engine library
    python -m benchmarks.gpu.smoke --imitate      # anywhere, on tests/imitation. Lines that need a GPU are left open

Every result is compared with NumPy bit for bit. Prints one JSON document as its last line. Exit code 1 if a line failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.lines import NEEDS_GPU, Line
from benchmarks.gpu.runs import TOKENS, milliseconds
from benchmarks.gpu.smoke_kernels import ARITHMETIC, CudaKernels, ImitatedKernels, KernelEngine, Kernels
from sdturbo.backends.checks import not_installed
from sdturbo.backends.device import PROGRAM_STAGES, DeviceProgram, DeviceSession
from sdturbo.backends.keep import KEEP, keep
from sdturbo.backends.nvidia.gpus import find_gpus, free_memory
from sdturbo.backends.nvidia.keep_kernel import KeepKernel
from sdturbo.backends.nvidia.stream import CudaStream, Scratch
from sdturbo.backends.recording import Recording
from sdturbo.bundle import EMBEDDED, Bundle
from sdturbo.bundle.description import Stage
from sdturbo.errors import BackendUnavailable, SDTurboError

BATCH_SIZES = (1, 4)
STEP_COUNTS = (1, 4)
THREADS, REQUESTS = 4, 50
RUNS = 50  # timed
PROGRAMS = 30  # made and dropped
GROWTH = 16e6  # bytes that they may leave behind
PETABYTE = 1 << 50

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """The stages that are run as kernels. imitated: not on a GPU, so that its figures say nothing about one."""

    stages: Mapping[str, Stage]
    kernels: Kernels
    imitated: bool = False

    def sessions(self, size: int) -> dict[str, DeviceSession]:
        """Each stage at a batch size, on a stream of its own."""
        return {
            name: DeviceSession(KernelEngine(stage, self.kernels), stage, size, CudaStream(0))
            for name, stage in self.stages.items()
        }

    def request(self, size: int) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(0)
        ids, latents = (self.stages[name].inputs[0].shape_at(size) for name in ("text_encoder", "denoiser"))
        return {"input_ids": rng.integers(0, TOKENS, ids), "latents": rng.standard_normal(latents, np.float32)}

    def expected(self, request: Arrays, size: int, steps: range) -> dict[str, NDArray[Any]]:
        """NumPy's outputs for a request."""

        def run(name: str, *inputs: NDArray[Any]) -> NDArray[Any]:
            shape = self.stages[name].outputs[0].shape_at(size)
            return ARITHMETIC[name](*inputs, int(np.prod(shape))).reshape(shape)

        latents, embeds = request["latents"], run("text_encoder", request["input_ids"])
        for step in steps:
            latents = run("denoiser", latents, embeds, np.asarray(step))
        return {"latents": latents, "image": run("decoder", latents)}


def report(trial: Trial) -> Iterator[Line]:
    """Every line. A part that fails is one line, and the other parts go on."""
    parts: dict[str, Callable[[Trial], Iterator[Line]]] = {
        "GPU": gpus,
        "stages and requests": requests,
        "inpainting": inpainting,
        "threads": threads,
        "a recording that fails": broken_recording,
        "memory": memory,
        "programs made and dropped": dropped,
    }
    for name, part in parts.items():
        try:
            yield from part(trial)
        except SDTurboError as error:
            yield Line(name, str(error).splitlines()[0], "no error", False)


def gpus(trial: Trial) -> Iterator[Line]:
    for gpu in find_gpus():
        words = f"compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.1f} GB, CUDA {gpu.driver}"
        yield Line(f"GPU {gpu.index}", f"{gpu.name}, {words}")
    free = free_memory(0)
    yield Line("free memory of GPU 0", f"{free / 1e9:.2f} GB", "more than 0", free > 0)


def requests(trial: Trial) -> Iterator[Line]:
    """Stages recorded alone and joined, at each batch size and number of steps, against NumPy and by time."""
    for size in BATCH_SIZES:
        sessions = trial.sessions(size)
        replayed = all(session.replays for session in sessions.values())
        yield _holds(f"each stage is one CUDA graph, batch size {size}", replayed)
        request = trial.request(size)
        for count in STEP_COUNTS:
            program = DeviceProgram(sessions, range(count), CudaStream(0))
            where = f"batch size {size}, {count} step{'s' * (count > 1)}"
            yield _holds(f"a request is one CUDA graph, {where}", program.replays)
            expected = trial.expected(request, size, range(count))
            alternating = (True, False, True, False)
            right = [(replay, _same(program.run(request, replay=replay), expected)) for replay in alternating]
            for replay in (True, False):
                way = "replayed" if replay else "launched"
                yield _holds(f"{way} equals NumPy, {where}", (replay, False) not in right)
                times = milliseconds(lambda _, p=program, r=replay, q=request: p.run(q, replay=r), RUNS)
                median = f"median {np.median(times):.3f} ms"
                yield Line(f"latency {way}, {where}", NEEDS_GPU if trial.imitated else median)


def inpainting(trial: Trial) -> Iterator[Line]:
    """The kernel between two steps, recorded, against NumPy and by time."""
    kernel, stream, stage = KeepKernel(0), CudaStream(0), KEEP.at(512, 512)
    rng = np.random.default_rng(0)
    for size in BATCH_SIZES:
        buffers = {
            spec.name: stream.buffer(spec.shape_at(size), spec.dtype) for spec in (*stage.inputs, *stage.outputs)
        }
        outputs = {spec.name: buffers[spec.name] for spec in stage.outputs}
        inputs = {name: buffer for name, buffer in buffers.items() if name not in outputs}
        recording = Recording("inpainting", [kernel.bind(buffers, stream)], stream, inputs, outputs)
        where = f"inpainting between steps, batch size {size}"
        yield _holds(f"one CUDA graph, {where}", recording.replays)
        given = {name: rng.standard_normal(buffer.host.shape, np.float32) for name, buffer in inputs.items()}
        given = {name: np.asarray(value, np.float32) for name, value in given.items()}
        for mask in (given["mask"], np.float32(1) * (given["mask"] > 0)):
            given["mask"] = mask
            right = [_same(recording.run(given, replay=replay), {"kept": keep(**given)}) for replay in (True, False)]
            kind = "0 and 1" if set(np.unique(mask)) == {0, 1} else "any values"
            yield _holds(f"replayed and launched equal NumPy, {where}, a mask of {kind}", all(right))
        times = milliseconds(lambda _, r=recording, g=given: r.run(g), RUNS)
        yield Line(f"latency, {where}", NEEDS_GPU if trial.imitated else f"median {np.median(times):.3f} ms")


def threads(trial: Trial) -> Iterator[Line]:
    """Several threads share one program, and take turns."""
    program = DeviceProgram(trial.sessions(1), range(2), CudaStream(0))
    request = trial.request(1)
    expected = trial.expected(request, 1, range(2))
    right: list[bool] = []

    def work() -> None:
        right.extend(_same(program.run(request), expected) for _ in range(REQUESTS))

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total = THREADS * REQUESTS
    yield Line(f"{THREADS} threads, {REQUESTS} requests each", f"{sum(right)} right", f"{total}", sum(right) == total)


def broken_recording(trial: Trial) -> Iterator[Line]:
    """A stage that CUDA refuses to record is launched plainly, and harms nothing else."""
    sessions = trial.sessions(1)
    program = DeviceProgram(sessions, range(1), CudaStream(0))
    stage = trial.stages["denoiser"]
    session = DeviceSession(KernelEngine(stage, trial.kernels, waits=True), stage, 1, CudaStream(0))
    yield _holds("a recording that fails is not replayed", not session.replays)
    request = trial.request(1)
    embeds = trial.stages["text_encoder"].outputs[0]
    inputs = {
        "latents": request["latents"],
        "prompt_embeds": np.ones(embeds.shape_at(1), embeds.dtype),
        "step": np.asarray(3),
    }
    (latents,) = session.run(inputs).values()
    expected = ARITHMETIC["denoiser"](*inputs.values(), latents.size).reshape(latents.shape)
    yield _holds("its stage is right all the same", np.array_equal(latents, expected))
    right = program.replays and _same(program.run(request), trial.expected(request, 1, range(1)))
    yield _holds("other recordings are replayed and right", right)


def memory(trial: Trial) -> Iterator[Line]:
    stream, scratch = CudaStream(0), Scratch()
    what = "a petabyte is refused"
    if trial.imitated:
        yield Line(what, NEEDS_GPU)
    else:
        try:
            stream.memory(PETABYTE)
            yield Line(what, "it was given", "out of memory", False)
        except BackendUnavailable as error:
            yield Line(what, str(error)[:110], "out of memory", "out of memory" in str(error))
    first = scratch.block(1 << 20, stream)
    yield _holds("scratch memory is shared", scratch.block(1 << 10, stream) is first)
    yield _holds("scratch memory grows", scratch.block(1 << 22, stream) is not first)


def dropped(trial: Trial) -> Iterator[Line]:
    """Memory of the GPU before and after many programs."""
    request = trial.request(4)
    gc.collect()
    before = free_memory(0)
    for _ in range(PROGRAMS):
        DeviceProgram(trial.sessions(4), range(4), CudaStream(0)).run(request)
    gc.collect()
    grown = before - free_memory(0)
    what = f"memory after {PROGRAMS} programs were dropped"
    if trial.imitated:
        yield Line(what, NEEDS_GPU)
    else:
        yield Line(what, f"{grown / 1e6:+.1f} MB", f"<= {GROWTH / 1e6:.0f} MB", grown <= GROWTH)


def _holds(what: str, holds: bool) -> Line:
    return Line(what, str(holds), "True", holds)


def _same(outputs: Arrays, expected: Arrays) -> bool:
    return all(np.array_equal(outputs[name], expected[name]) for name in expected)


def imitate_cuda() -> Any:
    """Put tests/imitation in the place of cuda-bindings in this process. Returns its runtime."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import imitation

    runtime, _ = imitation.install(SimpleNamespace(setitem=operator.setitem))
    return runtime


def prepare(*, imitate: bool) -> Trial:
    """The embedded model's stages as kernels. Raises BackendUnavailable if there is no GPU or no compiler for them."""
    bundle = Bundle.load(EMBEDDED)
    stages = {name: bundle.stages[name] for name in PROGRAM_STAGES}
    if imitate:
        return Trial(stages, ImitatedKernels(imitate_cuda()), imitated=True)
    if refusal := not_installed("cuda", "cuda.bindings", "cuda", package="cuda-bindings"):
        raise BackendUnavailable(f"{refusal} Or try `--imitate`.")
    return Trial(stages, CudaKernels(find_gpus()[0].compute_capability))


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--imitate", action="store_true", help="on an imitation of CUDA, which needs no GPU")
    try:
        trial = prepare(imitate=parser.parse_args(command_line).imitate)
    except SDTurboError as error:
        print(f"smoke: {error}", file=sys.stderr)
        return error.exit_code
    lines: list[Line] = []
    for line in report(trial):
        lines.append(line)
        print(line, flush=True)
    failed = sum(line.ok is False for line in lines)
    print(f"{failed} lines failed, {sum(line.ok is True for line in lines)} passed")
    print(json.dumps({"imitated": trial.imitated, "failed": failed, "lines": [asdict(line) for line in lines]}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
