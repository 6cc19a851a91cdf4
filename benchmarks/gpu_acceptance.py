"""Check sdturbo's promises on this machine's NVIDIA GPU: engines, parity, latency, memory and a soak, in one report.

    python -m benchmarks.gpu_acceptance --model seeded            # on a machine with a GPU, under 30 minutes
    python -m benchmarks.gpu_acceptance --model seeded --batch-size 1 --batch-size 4       # every batch size is measured
    python -m benchmarks.gpu_acceptance --backend cuda            # ONNX Runtime, without plans
    python -m benchmarks.gpu_acceptance --model small --dry       # anywhere: the same lines, figures that need a GPU left open

Prints the report, and one JSON document as its last line. Text and JSON in the folder of the report grow line by line. Exit
code 0 if no line failed, 1 otherwise. A dry run uses the null backend's device in the place of CUDA. Its figures are no
figures of a GPU, and neither pass nor fail. Stored reports: benchmarks/results/gpu.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import sdturbo
from benchmarks.gpu import engines
from benchmarks.gpu.lines import NEEDS_GPU, Extent, Line, Report, guarded
from benchmarks.gpu.loads import loads
from benchmarks.gpu.requests import gpu_of, requests
from sdturbo import backends
from sdturbo.bundle import Bundle
from sdturbo.commands.console import run
from sdturbo.errors import SDTurboError
from sdturbo_export.errors import BuildError


def machine(extent: Extent) -> Iterator[Line]:
    yield Line("sdturbo", sdturbo.__version__)
    if extent.dry:
        yield Line("GPU", NEEDS_GPU)
        yield Line("TensorRT", NEEDS_GPU)
        return
    gpu = gpu_of(extent)
    yield Line(
        "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.1f} GB, CUDA {gpu.driver}"
    )
    yield Line("backend", f"{extent.backend} {backends.connect(extent.choice).version}")


def acceptance(path: Path, extent: Extent, timing_caches: Path) -> Iterator[Line]:
    """Every line of the report. A machine that cannot run it ends it. A later failure is a line, and the report goes on."""
    bundle = Bundle.load(path)
    yield Line("model", f"{bundle.model['name']}, {bundle.precision}, bundle {bundle.bundle_id}")
    if reason := backends.offer_for(extent.choice).reason:
        yield Line("machine", reason, "no error", False)
        return
    yield from guarded("machine", lambda: machine(extent))
    if extent.backend == "tensorrt":
        yield from guarded("parsed", lambda: engines.parse(bundle, extent))
        yield from guarded("plans", lambda: engines.compile_plans(bundle, extent, timing_caches))
        yield from guarded("parity", lambda: engines.parity_of_plans(Bundle.load(path), extent))
    else:
        yield from guarded("parity", lambda: engines.parity(bundle, extent))
    if extent.backend in ("tensorrt", "null"):
        yield from guarded("loads", lambda: loads(path, extent))
    for size in bundle.batch_sizes:
        yield from guarded(
            f"stages at batch size {size}", lambda at=size: engines.stages(Bundle.load(path), extent, at)
        )
        gc.collect()  # the stages' engines, before the next ones are loaded
    yield from guarded("requests", lambda: requests(path, extent))


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
    about = {"model": bundle.model["name"], "bundle_id": bundle.bundle_id, "dry": extent.dry}
    report = Report(arguments.out, {**about, "backend": arguments.backend})
    for line in acceptance(bundle.path, extent, arguments.out / "tensorrt"):
        report.add(line)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
