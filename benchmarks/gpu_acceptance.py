"""Does this machine's NVIDIA GPU do what sdturbo promises? Engines, parity, latency, memory and a soak, in one report.

    python benchmarks/gpu_acceptance.py --model seeded            # on a machine with a GPU, under 30 minutes
    python benchmarks/gpu_acceptance.py --model seeded --batch-size 1 --batch-size 4       # every batch size is measured
    python benchmarks/gpu_acceptance.py --model small --dry       # anywhere: the same lines, figures that need a GPU left open

Prints the report, saves it as text and JSON, and prints one JSON document as its last line. Exit code 0 if no line failed,
1 otherwise. A dry run uses the null backend's device in the place of CUDA; its figures are no figures of a GPU, and neither
pass nor fail. Has not been run on a GPU yet.
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
from sdturbo.backends import EngineChoice
from sdturbo.backends.device import PROGRAM_STAGES, DeviceProgram
from sdturbo.bundle import Bundle
from sdturbo.commands.bench import pictures_per_second
from sdturbo.commands.console import run
from sdturbo.errors import BackendUnavailable, SDTurboError
from sdturbo.golden import golden_distance
from sdturbo_export.errors import BuildError
from sdturbo_export.proof.distance import BOUNDS, relative_l2
from sdturbo_export.proof.walk import bundle_walk, run_of

NEEDS_GPU = "needs a GPU"
# ms for text encoder, UNet and decoder, batch 1: per operator the greater of arithmetic and memory traffic, ideal fusion
ROOFLINES = {"H100": 3.95, "A100": 11.3, "RTX 4090": 21.5, "T4": 56.0}
LIMITS = {"A100": 36.0, "RTX 4090": 36.0}  # ms for a whole request, one step
LIMIT = 100.0  # on every other GPU that TensorRT supports
FULL_SIZE = 2e9  # bytes of graphs and weights: the limits are for the full-size model
GROWTH = 16e6  # bytes that 1,000 requests may add to the GPU's memory, or 64 MB to the process's


@dataclass(frozen=True, slots=True)
class Line:
    """ok None: neither pass nor fail, a figure to know or one that needs a GPU."""

    what: str
    found: str
    expected: str = ""
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "    "}[self.ok]
        return f"{verdict}  {self.what:<44} {self.found}{f'  ({self.expected})' if self.expected else ''}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run. backend, device: ("null", "null:0") in a dry run."""

    backend: str
    device: str
    dry: bool
    runs: int
    soak: int

    @property
    def choice(self) -> EngineChoice:
        return EngineChoice(self.backend, self.device)

    def verdict(self, ok: bool) -> bool | None:
        """A figure's verdict; in a dry run it has none."""
        return None if self.dry else bool(ok)

    def figure(self, text: str) -> str:
        return NEEDS_GPU if self.dry else text


def machine(plan: Plan) -> Iterator[Line]:
    yield Line("sdturbo", sdturbo.__version__)
    if plan.dry:
        yield Line("GPU", NEEDS_GPU)
        yield Line("TensorRT", NEEDS_GPU)
        return
    gpu = _gpu(plan)
    yield Line(
        "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.1f} GB, CUDA {gpu.driver}"
    )
    yield Line("backend", f"{plan.backend} {backends.connect(plan.choice).version}")


def compile_plans(bundle: Bundle, plan: Plan, store: Path) -> Iterator[Line]:
    """Compile what is missing; each plan was compared with the graph on the CPU when it was made."""
    from sdturbo.bundle.plans import read_plans
    from sdturbo_export.tensorrt.trt_plans import compile_plans as compile_all

    start = time.perf_counter()
    compiled = compile_all(bundle, device=plan.device, store=store, say=lambda line: print(line, file=sys.stderr))
    yield Line("plans compiled in", f"{time.perf_counter() - start:.0f} s")
    for one in read_plans(compiled):
        yield _parity(one.stage, one.batch_size, one.relative_l2, bundle, plan, f", plan {one.median_ms:.2f} ms")


def parity(bundle: Bundle, plan: Plan) -> Iterator[Line]:
    """Each stage against the graph on the CPU, where no plan was compared when it was made."""
    from sdturbo_export.tensorrt.trt_plans import references

    backend = backends.connect(plan.choice, bundle)
    for size in bundle.batch_sizes:
        for visit in references(bundle, size):
            session = backend.session(bundle.graph(visit.stage, size), bundle.stages[visit.stage], size)
            (output,) = session.run(visit.inputs).values()
            yield _parity(visit.stage, size, relative_l2(output, visit.output), bundle, plan)


def _parity(stage: str, size: int, distance: float, bundle: Bundle, plan: Plan, more: str = "") -> Line:
    bound = BOUNDS[bundle.precision]
    found = plan.figure(f"relative L2 {distance:.1e}{more}")
    expected = f"<= {bound:.0e} to ONNX Runtime's CPU"
    return Line(f"parity, {stage} at batch size {size}", found, expected, plan.verdict(distance <= bound))


def stages(bundle: Bundle, plan: Plan, size: int) -> Iterator[Line]:
    """Each stage alone at a batch size, copies in and out included; then joined, launched plainly and as one CUDA graph."""
    backend = backends.connect(plan.choice, bundle)
    sessions: dict[str, Any] = {
        name: backend.session(bundle.graph(name, size), bundle.stages[name], size) for name in PROGRAM_STAGES
    }
    ids = np.random.default_rng(0).integers(0, 49408, (size, 77))
    walk = bundle_walk(bundle, ids, list(range(size)), 1)
    at = f" at batch size {size}"
    for visit in walk.visits(run_of(sessions), until="decoder"):
        session, inputs = sessions[visit.stage], visit.inputs
        yield Line(f"latency, {visit.stage}{at}", plan.figure(_times(lambda s=session, i=inputs: s.run(i), plan.runs)))
    first = walk.inputs("text_encoder", 0) | {"latents": walk.inputs("denoiser", 0)["latents"]}
    program = backend.program(sessions, bundle.steps(1))
    if not isinstance(program, DeviceProgram):
        raise BackendUnavailable(f"The backend {plan.backend!r} does not keep a request on its device.")
    yield Line(f"stages joined and replayed as one{at}", str(program.replays), "True", program.replays)
    expected = program.run(first)
    plain = program.run(first, replay=False)
    distance = relative_l2(plain["latents"], walk.outputs["denoiser"])
    yield Line(f"joined against stage by stage{at}", f"relative L2 {distance:.1e}", "<= 1e-3", distance <= 1e-3)
    again = program.run(first)
    same = all(np.array_equal(expected[name], again[name]) for name in expected)
    yield Line(f"run 1 equals run 2{at}", str(same), "True", same)
    for replay, text in ((False, "without CUDA graph"), (True, "with CUDA graph")):
        yield Line(
            f"latency, three stages {text}{at}",
            plan.figure(_times(lambda r=replay: program.run(first, replay=r), plan.runs)),
        )


def requests(bundle: Bundle, plan: Plan) -> Iterator[Line]:
    """Whole requests from prompt to pixels: golden picture, latency against the limit, memory, soak."""
    before = _free(plan)
    start = time.perf_counter()
    pipe = Pipeline.load(bundle.path, plan.backend, device=plan.device, image_to_image=False)
    yield Line("load time", plan.figure(f"{time.perf_counter() - start:.1f} s"))
    yield Line("GPU memory taken", plan.figure(f"{(before - _free(plan)) / 1e9:.2f} GB"))
    psnr, least = golden_distance(pipe), bundle.golden.min_psnr
    yield Line("golden picture", plan.figure(f"{psnr:.1f} dB"), f">= {least:.0f} dB", plan.verdict(psnr >= least))
    times = _samples(lambda i: pipe(f"picture number {i}", seed=i, output_type="np"), plan.runs)
    name = "" if plan.dry else _gpu(plan).name
    limit, floor = _known(LIMITS, name) or LIMIT, _known(ROOFLINES, name)
    full = sum(size for _, size in bundle.files.values()) > FULL_SIZE
    ok = plan.verdict(float(np.median(times)) <= limit) if full else None
    expected = f"median <= {limit:.0f} ms" + ("" if full else ", for the full-size model")
    yield Line("latency, whole request, one step", plan.figure(_summary(times)), expected, ok)
    for size in bundle.batch_sizes[1:]:
        batch = _samples(lambda i, n=size: pipe(_prompts(i, n), seed=i, output_type="np"), max(3, plan.runs // size))
        yield Line(f"latency, whole request of {size} pictures", plan.figure(_summary(batch)))
    yield from _streamed(pipe, plan)
    yield Line("roofline of this GPU", plan.figure(f"{floor:.2f} ms" if floor else "not known for this GPU"))
    free, resident = _free(plan), _resident()
    for i in range(plan.soak):
        pipe(f"picture number {i}", seed=i, output_type="np")
    grown, host = free - _free(plan), _resident() - resident
    what = f"soak, {plan.soak} requests: memory of the"
    yield Line(
        f"{what} GPU", plan.figure(f"{grown / 1e6:+.1f} MB"), f"<= {GROWTH / 1e6:.0f} MB", plan.verdict(grown <= GROWTH)
    )
    yield Line(f"{what} process", f"{host / 1e6:+.1f} MB", "<= 64 MB", plan.verdict(host <= 64e6))


def _streamed(pipe: Pipeline, plan: Plan) -> Iterator[Line]:
    """Requests under way at the same time: that they are what calls draw, and pictures a second of both."""
    given: list[Request] = [{"prompt": f"picture number {i}", "seed": i, "output_type": "np"} for i in range(8)]
    most = 0
    for one, request in zip(pipe.stream(given), given, strict=True):
        if isinstance(one, SDTurboError):
            raise one
        most = max(most, int(np.abs(one.images.astype(int) - pipe(**request).images).max()))
    yield Line("streamed against called", f"pixels differ by {most} of 255", "<= 1", most <= 1)
    rates = pictures_per_second(pipe, runs=plan.runs, num_inference_steps=1)
    for name, rate in rates.items():
        yield Line(f"throughput, {name}", plan.figure(f"{rate:.1f} pictures/s"))


def _prompts(i: int, count: int) -> list[str]:
    return [f"picture {j} of request {i}" for j in range(count)]


def acceptance(path: Path, plan: Plan, store: Path) -> Iterator[Line]:
    """Every line of the report. A machine that cannot run it ends it; of what breaks later, a line tells, and it goes on."""
    bundle = Bundle.load(path)
    yield Line("model", f"{bundle.model['name']}, {bundle.precision}, bundle {bundle.bundle_id}")
    if reason := backends.offer_for(plan.choice).reason:
        yield Line("machine", reason, "no error", False)
        return
    yield from _guarded("machine", lambda: machine(plan))
    if plan.backend == "tensorrt":
        yield from _guarded("plans", lambda: compile_plans(Bundle.load(path), plan, store))
    else:
        yield from _guarded("parity", lambda: parity(bundle, plan))
    for size in bundle.batch_sizes:
        yield from _guarded("stages", lambda at=size: stages(Bundle.load(path), plan, at))
        gc.collect()  # the stages' engines, before the next ones are loaded
    yield from _guarded("requests", lambda: requests(Bundle.load(path), plan))


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


def _gpu(plan: Plan) -> Any:
    from sdturbo.backends.nvidia.gpus import find_gpus

    return find_gpus()[_index(plan)]


def _free(plan: Plan) -> int:
    """Free bytes on the GPU; 0 in a dry run, where nothing is made of it."""
    from sdturbo.backends.nvidia.gpus import free_memory

    return 0 if plan.dry else free_memory(_index(plan))


def _index(plan: Plan) -> int:
    return int(plan.device.partition(":")[2] or 0)


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="seeded")
    parser.add_argument("--bundle", type=Path, help="an fp16 bundle; built from --model if it is not there")
    parser.add_argument("--backend", default="tensorrt", choices=["tensorrt", "cuda", "cuda-tensorrt"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-acceptance"), help="directory of the report")
    parser.add_argument("--batch-size", type=int, action="append", help="of the bundle; again for more. Default: 1")
    parser.add_argument("--dry", action="store_true", help="everything but the calls of CUDA")
    given = parser.parse_args(arguments)
    plan = Plan(given.backend, given.device, dry=False, runs=200, soak=1000)
    if given.dry:
        plan = Plan("null", "null:0", dry=True, runs=5, soak=20)
    name = Path(given.model.rstrip("/")).name
    try:
        bundle = _bundle(given.model, given.bundle or Path("build") / f"{name}-fp16", given.batch_size or [1])
    except SDTurboError as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        return error.exit_code
    lines: list[Line] = []
    for line in acceptance(bundle.path, plan, given.out / "tensorrt"):
        lines.append(line)
        print(line, flush=True)
    failed = sum(line.ok is False for line in lines)
    open_lines = sum(line.found == NEEDS_GPU for line in lines)
    verdict = f"{failed} lines failed, {sum(line.ok is True for line in lines)} passed, {open_lines} need a GPU"
    print(verdict)
    report = {"model": bundle.model["name"], "bundle_id": bundle.bundle_id, "dry": plan.dry, "verdict": verdict}
    report |= {"backend": given.backend, "lines": [asdict(line) for line in lines]}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (given.out / "report.txt").write_text("\n".join([*map(str, lines), verdict, ""]), encoding="utf-8")
    print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
