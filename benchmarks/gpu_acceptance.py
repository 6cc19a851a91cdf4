"""Check sdturbo's promises on this machine's NVIDIA GPU: engines, parity, latency, memory and a soak, in one report.

    python benchmarks/gpu_acceptance.py --model seeded            # on a machine with a GPU, under 30 minutes
    python benchmarks/gpu_acceptance.py --model seeded --batch-size 1 --batch-size 4       # every batch size is measured
    python benchmarks/gpu_acceptance.py --model small --dry       # anywhere: the same lines, figures that need a GPU left open

Prints the report, saves it as text and JSON, and prints one JSON document as its last line. Exit code 0 if no line failed,
1 otherwise. A dry run uses the null backend's device in the place of CUDA. Its figures are no figures of a GPU, and neither
pass nor fail. This has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sdturbo
from sdturbo import Pipeline, Request, backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.device import PROGRAM_STAGES, DeviceProgram
from sdturbo.bundle import Bundle
from sdturbo.commands.bench import pictures_per_second
from sdturbo.commands.console import run
from sdturbo.errors import BackendUnavailable, SDTurboError
from sdturbo.golden import golden_distance
from sdturbo_export.errors import BuildError
from sdturbo_export.proof.distance import BOUNDS, relative_l2
from sdturbo_export.proof.walk import Walk, run_of

NEEDS_GPU = "needs a GPU"
# ms for text encoder, UNet and decoder, batch 1: per operator the greater of arithmetic and memory traffic, ideal fusion
ROOFLINES = {"H100": 3.95, "A100": 11.3, "RTX 4090": 21.5, "T4": 56.0}
LIMITS = {"A100": 36.0, "RTX 4090": 36.0}  # ms for a whole request, one step
LIMIT = 100.0  # on every other GPU that TensorRT supports
FULL_SIZE = 2e9  # bytes of graphs and weights: the limits are for the full-size model
GROWTH = 16e6  # bytes that 1,000 requests may add to the GPU's memory, or 64 MB to the process's


@dataclass(frozen=True, slots=True)
class Line:
    """One check. ok None: neither pass nor fail, for a figure without a limit or one that needs a GPU."""

    what: str
    measured: str
    expected: str = ""
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "    "}[self.ok]
        return f"{verdict}  {self.what:<44} {self.measured}{f'  ({self.expected})' if self.expected else ''}"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run, and where. backend, device: ("null", "null:0") in a dry run. runs: timed. soak: requests."""

    backend: str
    device: str
    dry: bool
    runs: int
    soak: int

    @property
    def choice(self) -> BackendChoice:
        return BackendChoice(self.backend, self.device)

    def verdict(self, ok: bool) -> bool | None:
        """A figure's verdict. In a dry run it has none."""
        return None if self.dry else bool(ok)

    def figure(self, text: str) -> str:
        return NEEDS_GPU if self.dry else text


def machine(extent: Extent) -> Iterator[Line]:
    yield Line("sdturbo", sdturbo.__version__)
    if extent.dry:
        yield Line("GPU", NEEDS_GPU)
        yield Line("TensorRT", NEEDS_GPU)
        return
    gpu = _gpu(extent)
    yield Line(
        "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.1f} GB, CUDA {gpu.driver}"
    )
    yield Line("backend", f"{extent.backend} {backends.connect(extent.choice).version}")


def compile_plans(bundle: Bundle, extent: Extent, timing_caches: Path) -> Iterator[Line]:
    """Compile the missing plans. Each plan was compared with the graph on the CPU when it was made."""
    from sdturbo.bundle.plans import read_plans
    from sdturbo_export.tensorrt.trt_plans import compile_plans as compile_all

    start = time.perf_counter()
    compiled = compile_all(
        bundle, device=extent.device, timing_caches=timing_caches, say=lambda line: print(line, file=sys.stderr)
    )
    yield Line("plans compiled in", f"{time.perf_counter() - start:.0f} s")
    for plan in read_plans(compiled):
        yield _parity(plan.stage, plan.batch_size, plan.relative_l2, bundle, extent, f", plan {plan.median_ms:.2f} ms")


def parity(bundle: Bundle, extent: Extent) -> Iterator[Line]:
    """Each stage against the graph on the CPU, where no plan was compared when it was made."""
    from sdturbo_export.tensorrt.trt_plans import references

    backend = backends.connect(extent.choice, bundle)
    for size in bundle.batch_sizes:
        for visit in references(bundle, size):
            session = backend.session(bundle.graph(visit.stage, size), bundle.stages[visit.stage], size)
            (output,) = session.run(visit.inputs).values()
            yield _parity(visit.stage, size, relative_l2(output, visit.output), bundle, extent)


def _parity(stage: str, size: int, distance: float, bundle: Bundle, extent: Extent, more: str = "") -> Line:
    bound = BOUNDS[bundle.precision]
    measured = extent.figure(f"relative L2 distance {distance:.1e}{more}")
    expected = f"<= {bound:.0e} to ONNX Runtime's CPU"
    return Line(f"parity, {stage} at batch size {size}", measured, expected, extent.verdict(distance <= bound))


def stages(bundle: Bundle, extent: Extent, size: int) -> Iterator[Line]:
    """Each stage alone at a batch size, with its copies in and out. Then all joined, launched plainly and as one CUDA graph."""
    backend = backends.connect(extent.choice, bundle)
    sessions: dict[str, Any] = {
        name: backend.session(bundle.graph(name, size), bundle.stages[name], size) for name in PROGRAM_STAGES
    }
    ids = np.random.default_rng(0).integers(0, 49408, (size, 77))
    walk = Walk(bundle.stages, bundle.schedule, 1, ids, list(range(size)))
    at = f" at batch size {size}"
    for visit in walk.visits(run_of(sessions), until="decoder"):
        session, inputs = sessions[visit.stage], visit.inputs
        yield Line(
            f"latency, {visit.stage}{at}", extent.figure(_times(lambda s=session, i=inputs: s.run(i), extent.runs))
        )
    first = walk.inputs("text_encoder", 0) | {"latents": walk.inputs("denoiser", 0)["latents"]}
    program = backend.program(sessions, bundle.steps(1))
    if not isinstance(program, DeviceProgram):
        raise BackendUnavailable(f"The backend {extent.backend!r} does not keep a request on its device.")
    yield Line(f"stages joined and replayed as one{at}", str(program.replays), "True", program.replays)
    expected = program.run(first)
    plain = program.run(first, replay=False)
    distance = relative_l2(plain["latents"], walk.outputs["denoiser"])
    yield Line(
        f"joined against stage by stage{at}", f"relative L2 distance {distance:.1e}", "<= 1e-3", distance <= 1e-3
    )
    again = program.run(first)
    same = all(np.array_equal(expected[name], again[name]) for name in expected)
    yield Line(f"run 1 equals run 2{at}", str(same), "True", same)
    for replay, text in ((False, "without CUDA graph"), (True, "with CUDA graph")):
        yield Line(
            f"latency, three stages {text}{at}",
            extent.figure(_times(lambda r=replay: program.run(first, replay=r), extent.runs)),
        )


def requests(bundle: Bundle, extent: Extent) -> Iterator[Line]:
    """Whole requests from prompt to pixels: golden picture, latency against the limit, memory, soak."""
    before = _free(extent)
    start = time.perf_counter()
    pipe = Pipeline.load(bundle.path, extent.backend, device=extent.device, image_to_image=False)
    yield Line("load time", extent.figure(f"{time.perf_counter() - start:.1f} s"))
    yield Line("GPU memory taken", extent.figure(f"{(before - _free(extent)) / 1e9:.2f} GB"))
    psnr, least = golden_distance(pipe), bundle.golden.min_psnr
    yield Line("golden picture", extent.figure(f"{psnr:.1f} dB"), f">= {least:.0f} dB", extent.verdict(psnr >= least))
    times = _samples(lambda i: pipe(f"picture number {i}", seed=i, output_type="np"), extent.runs)
    name = "" if extent.dry else _gpu(extent).name
    limit, floor = _known(LIMITS, name) or LIMIT, _known(ROOFLINES, name)
    full = sum(size for _, size in bundle.files.values()) > FULL_SIZE
    ok = extent.verdict(float(np.median(times)) <= limit) if full else None
    expected = f"median <= {limit:.0f} ms" + ("" if full else ", for the full-size model")
    yield Line("latency, whole request, one step", extent.figure(_summary(times)), expected, ok)
    for size in bundle.batch_sizes[1:]:
        batch = _samples(lambda i, n=size: pipe(_prompts(i, n), seed=i, output_type="np"), max(3, extent.runs // size))
        yield Line(f"latency, whole request of {size} pictures", extent.figure(_summary(batch)))
    yield from _streamed(pipe, extent)
    yield Line("roofline of this GPU", extent.figure(f"{floor:.2f} ms" if floor else "not known for this GPU"))
    free, resident = _free(extent), _resident()
    for i in range(extent.soak):
        pipe(f"picture number {i}", seed=i, output_type="np")
    grown, host = free - _free(extent), _resident() - resident
    what = f"soak, {extent.soak} requests: memory of the"
    yield Line(
        f"{what} GPU",
        extent.figure(f"{grown / 1e6:+.1f} MB"),
        f"<= {GROWTH / 1e6:.0f} MB",
        extent.verdict(grown <= GROWTH),
    )
    yield Line(f"{what} process", f"{host / 1e6:+.1f} MB", "<= 64 MB", extent.verdict(host <= 64e6))


def _streamed(pipe: Pipeline, extent: Extent) -> Iterator[Line]:
    """Requests under way at the same time: the same pictures as those of calls, and pictures per second of both."""
    requests: list[Request] = [{"prompt": f"picture number {i}", "seed": i, "output_type": "np"} for i in range(8)]
    most = 0
    for result, request in zip(pipe.stream(requests), requests, strict=True):
        if isinstance(result, SDTurboError):
            raise result
        most = max(most, int(np.abs(result.images.astype(int) - pipe(**request).images).max()))
    yield Line("streamed against called", f"pixels differ by {most} of 255", "<= 1", most <= 1)
    rates = pictures_per_second(pipe, runs=extent.runs, num_inference_steps=1)
    for name, rate in rates.items():
        yield Line(f"throughput, {name}", extent.figure(f"{rate:.1f} pictures/s"))


def _prompts(i: int, count: int) -> list[str]:
    return [f"picture {j} of request {i}" for j in range(count)]


def acceptance(path: Path, extent: Extent, timing_caches: Path) -> Iterator[Line]:
    """Every line of the report. A machine that cannot run it ends it. A later failure is a line, and the report goes on."""
    bundle = Bundle.load(path)
    yield Line("model", f"{bundle.model['name']}, {bundle.precision}, bundle {bundle.bundle_id}")
    if reason := backends.offer_for(extent.choice).reason:
        yield Line("machine", reason, "no error", False)
        return
    yield from _guarded("machine", lambda: machine(extent))
    if extent.backend == "tensorrt":
        yield from _guarded("plans", lambda: compile_plans(Bundle.load(path), extent, timing_caches))
    else:
        yield from _guarded("parity", lambda: parity(bundle, extent))
    for size in bundle.batch_sizes:
        yield from _guarded("stages", lambda at=size: stages(Bundle.load(path), extent, at))
        gc.collect()  # the stages' engines, before the next ones are loaded
    yield from _guarded("requests", lambda: requests(Bundle.load(path), extent))


def _guarded(name: str, part: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    try:
        yield from part()
    except SDTurboError as error:
        yield Line(name, str(error).splitlines()[0], "no error", False)


def _times(call: Callable[[], Any], runs: int) -> str:
    return _summary(_samples(lambda _: call(), runs))


def _samples(call: Callable[[int], Any], runs: int) -> list[float]:
    """Milliseconds of `runs` calls, after three that are not counted."""
    times: list[float] = []
    for i in range(runs + 3):
        start = time.perf_counter()
        call(i)
        times.append((time.perf_counter() - start) * 1e3)
    return times[3:]


def _summary(times: list[float]) -> str:
    return f"median {np.median(times):.2f} ms, p99 {np.percentile(times, 99):.2f} ms, {len(times)} runs"


def _gpu(extent: Extent) -> Any:
    from sdturbo.backends.nvidia.gpus import find_gpus

    return find_gpus()[_index(extent)]


def _free(extent: Extent) -> int:
    """Free bytes on the GPU. 0 in a dry run, which has no use for them."""
    from sdturbo.backends.nvidia.gpus import free_memory

    return 0 if extent.dry else free_memory(_index(extent))


def _index(extent: Extent) -> int:
    return int(extent.device.partition(":")[2] or 0)


def _resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


def _known(table: dict[str, float], name: str) -> float | None:
    return next((value for key, value in table.items() if re.search(rf"\b{key}\b", name)), None)


def _bundle(model: str, path: Path, batch_sizes: list[int]) -> Bundle:
    """The fp16 bundle at `path`, built from `model` if it is not there. Raises BuildError if it lacks a batch size."""
    sizes = [part for size in batch_sizes for part in ("--batch-size", str(size))]
    command = ["build", "--model", model, "--precision", "fp16", "--out", str(path), *sizes]
    if not path.exists():
        from sdturbo_export.cli import cli

        if status := run(cli, "sdturbo-export", command):
            raise BuildError(f"`sdturbo-export {' '.join(command)}` ended with exit code {status}.")
    bundle = Bundle.load(path)
    if missing := set(batch_sizes) - set(bundle.batch_sizes):
        raise BuildError(
            f"The bundle {path} has no graphs for batch size {', '.join(map(str, sorted(missing)))}. Build it again, with the"
            f" options it was built with: `sdturbo-export {' '.join(command)}`."
        )
    return bundle


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="seeded")
    parser.add_argument("--bundle", type=Path, help="an fp16 bundle, built from --model if it is not there")
    parser.add_argument("--backend", default="tensorrt", choices=["tensorrt", "cuda", "cuda-tensorrt"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-acceptance"), help="directory of the report")
    parser.add_argument("--batch-size", type=int, action="append", help="of the bundle. Repeatable. Default: 1")
    parser.add_argument("--dry", action="store_true", help="everything but the calls of CUDA")
    arguments = parser.parse_args(command_line)
    extent = Extent(arguments.backend, arguments.device, dry=False, runs=200, soak=1000)
    if arguments.dry:
        extent = Extent("null", "null:0", dry=True, runs=5, soak=20)
    name = Path(arguments.model.rstrip("/")).name
    try:
        bundle = _bundle(
            arguments.model, arguments.bundle or Path("build") / f"{name}-fp16", arguments.batch_size or [1]
        )
    except SDTurboError as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        return error.exit_code
    lines: list[Line] = []
    for line in acceptance(bundle.path, extent, arguments.out / "tensorrt"):
        lines.append(line)
        print(line, flush=True)
    failed = sum(line.ok is False for line in lines)
    open_lines = sum(line.measured == NEEDS_GPU for line in lines)
    verdict = f"{failed} lines failed, {sum(line.ok is True for line in lines)} passed, {open_lines} need a GPU"
    print(verdict)
    report = {"model": bundle.model["name"], "bundle_id": bundle.bundle_id, "dry": extent.dry, "verdict": verdict}
    report |= {"backend": arguments.backend, "lines": [asdict(line) for line in lines]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (arguments.out / "report.txt").write_text("\n".join([*map(str, lines), verdict, ""]), encoding="utf-8")
    print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
