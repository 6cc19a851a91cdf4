"""Build every graph of a bundle with TensorRT for RTX, by our own `trt_from_onnx` and without a GPU.

    python -m benchmarks.gpu.rtx_build build/small-fp16
    python -m benchmarks.gpu.rtx_build build/seeded-fp16 decoder encoder       # these stages alone

A build shows that NVIDIA's parser takes the graph with its weights, that the strongly typed network is sound, and that our
calls suit the library. It says nothing about a run. Prints one JSON document as its last line. Exit code 1 if a build
failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from sdturbo.backends.nvidia.library import RTX
from sdturbo.bundle import Bundle
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo_export.errors import BuildError
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx

WORKSPACE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Build:
    """size: bytes of the plan. progress: reports of the share that is done. backwards: those of a smaller share than before."""

    stage: str
    batch_size: int
    seconds: float
    size: int
    progress: int
    backwards: int
    error: str | None = None

    def __str__(self) -> str:
        graph = f"{self.stage} at batch size {self.batch_size}"
        if self.error is not None:
            return f"FAIL  {graph}: {self.error}"
        words = f"{self.progress} reports of progress, {self.backwards} of them backwards"
        return f"pass  {graph}: {self.size / 1e6:.1f} MB in {self.seconds:.1f} s, {words}"


def builds(bundle: Bundle, stages: Sequence[str]) -> Iterator[Build]:
    """Each of `stages` at each batch size of the bundle."""
    for size in bundle.batch_sizes:
        for stage in stages:
            shares: list[float] = []
            start, plan, error = time.perf_counter(), b"", None
            try:
                options = PlanOptions(WORKSPACE_BYTES, library=RTX)
                plan = trt_from_onnx(bundle.graph(stage, size), options, b"", shares.append).plan
            except BuildError as refusal:
                error = str(refusal)
            backwards = sum(later < earlier for earlier, later in pairwise(shares))
            yield Build(stage, size, time.perf_counter() - start, len(plan), len(shares), backwards, error)


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("stages", nargs="*", help="all of the bundle by default")
    arguments = parser.parse_args(command_line)
    done: list[Build] = []
    try:
        bundle = Bundle.load(arguments.bundle)
        if unknown := set(arguments.stages) - set(bundle.stages):
            raise InvalidRequest(f"Got stages {', '.join(sorted(unknown))}. Expected {', '.join(bundle.stages)}.")
        RTX.require()
        for build in builds(bundle, arguments.stages or list(bundle.stages)):
            done.append(build)
            print(build, flush=True)
    except SDTurboError as error:
        print(f"rtx_build: {error}", file=sys.stderr)
        return error.exit_code
    failed = sum(build.error is not None for build in done)
    print(json.dumps({"bundle_id": bundle.bundle_id, "failed": failed, "builds": [asdict(build) for build in done]}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
