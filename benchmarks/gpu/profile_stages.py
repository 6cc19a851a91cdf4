"""The time of a stage on the GPU, kernel by kernel, on any backend, seen by torch's profiler in the same process.

    python -m benchmarks.gpu.profile_stages build/seeded-fp16 --backend cuda

Needs torch with CUDA beside the backend. Prints one JSON document as its last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.runs import milliseconds, random_inputs
from benchmarks.markdown import table
from sdturbo import backends
from sdturbo.bundle import Bundle
from sdturbo.errors import BackendUnavailable, SDTurboError

RUNS = 20  # timed without the profiler
PROFILED = 5
MOST_KERNELS = 25  # rows of a table
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of torch's trace

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel or copy by its name: milliseconds and launches of one run."""

    name: str
    milliseconds: float
    launches: float


def kernels_by_time(events: Iterable[Event], runs: int) -> list[Kernel]:
    """The work on the GPU in a trace of `runs` runs, the longest first. events: Chrome's, `dur` in microseconds."""
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ON_GPU:
            spent[" ".join(str(event["name"]).split())].append(float(event["dur"]))
    kernels = [Kernel(name, sum(each) / runs / 1e3, len(each) / runs) for name, each in spent.items()]
    return sorted(kernels, key=lambda kernel: kernel.milliseconds, reverse=True)


def trace(call: Callable[[], object], runs: int) -> list[Event]:
    """The events of `runs` calls in this process, of any library.

    Raises BackendUnavailable if torch has no GPU.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"torch {torch.__version__} sees no GPU here. Its profiler needs a torch with CUDA.")
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(runs):
            call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def describe(stage: str, median_ms: float, kernels: list[Kernel]) -> str:
    """A sentence on the stage, and the table of its longest kernels."""
    total = sum(kernel.milliseconds for kernel in kernels)
    launches = sum(kernel.launches for kernel in kernels)
    rows = [_cells(kernel, total) for kernel in kernels[:MOST_KERNELS]]
    words = f"{stage}: a call takes {median_ms:.3f} ms (median), its {launches:.0f} kernels {total:.3f} ms"
    return f"{words}\n\n{table(('kernel', 'ms', '%', 'launches'), rows)}\n"


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="tensorrt", help="tensorrt, cuda or cuda-tensorrt")
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args(command_line)
    stages: dict[str, Any] = {}
    try:
        bundle = Bundle.load(arguments.bundle)
        backend = backends.connect(backends.BackendChoice(arguments.backend, arguments.device), bundle)
        size = bundle.batch_sizes[0]
        for name, stage in bundle.stages.items():
            session = backend.session(bundle.graph(name, size, form=backend.form), stage, size)
            inputs = random_inputs(stage, size)
            median = float(np.median(milliseconds(lambda _, s=session, i=inputs: s.run(i), RUNS)))
            kernels = kernels_by_time(trace(lambda s=session, i=inputs: s.run(i), PROFILED), PROFILED)
            if not kernels:
                raise BackendUnavailable(f"torch's profiler saw no kernel of the {name}. May this user trace the GPU?")
            stages[name] = {"median_ms": median, "kernels": [asdict(kernel) for kernel in kernels]}
            print(describe(name, median, kernels), flush=True)
    except SDTurboError as error:
        print(f"profile_stages: {error}", file=sys.stderr)
        return error.exit_code
    used = {"bundle_id": bundle.bundle_id, "backend": backend.name, "device": backend.device}
    print(json.dumps({**used, "stages": stages}))
    return 0


def _cells(kernel: Kernel, total: float) -> list[str]:
    share = 100 * kernel.milliseconds / total
    return [kernel.name[:150], f"{kernel.milliseconds:.3f}", f"{share:.1f}", f"{kernel.launches:g}"]


if __name__ == "__main__":
    sys.exit(main())
