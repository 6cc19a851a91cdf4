"""The runtime around the engines: the time of an import, the time of a request outside the engines, and the pictures of
threads that share a pipeline. Prints one JSON document as its last line.

    python benchmarks/runtime.py --bundle build/tiny
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sdturbo import Pipeline
from sdturbo.commands.bench import ENGINES

HEAVY = ("torch", "diffusers", "transformers", "onnxruntime", "openvino", "numpy")
_IMPORT = (
    "import time, sys; t = time.perf_counter(); import sdturbo; t = time.perf_counter() - t;"
    f"print(t, *(m for m in {HEAVY} if m in sys.modules))"
)


def import_cost(runs: int = 7) -> dict[str, Any]:
    """Median seconds of `import sdturbo` in a fresh interpreter, and the heavy modules that it loaded."""
    outputs = [
        subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True) for _ in range(runs)
    ]
    fields = [output.stdout.split() for output in outputs]
    return {"seconds": float(np.median([float(seconds) for seconds, *_ in fields])), "heavy_modules": fields[0][1:]}


def request_overhead(pipe: Pipeline, runs: int) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds, of a text-to-image request outside the engine stages. Each prompt is new."""
    times: list[float] = []
    for i in range(runs + 1):
        timings = pipe(f"request number {i}", seed=i).timings
        times.append(timings["total"] - sum(timings.get(name, 0.0) for name in ENGINES))
    return {"median_ms": float(np.median(times[1:])), "p95_ms": float(np.percentile(times[1:], 95))}


def shared_by_threads(pipe: Pipeline, requests: int, threads: int) -> dict[str, int]:
    """The number of `requests`, drawn by `threads` threads sharing one pipeline, that equal their single-thread twin."""

    def draw(i: int) -> Any:
        return pipe(f"request number {i % 7}", seed=i, output_type="np").images[0]

    alone = [draw(i) for i in range(requests)]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(draw, range(requests)))
    equal = sum(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    return {"threads": threads, "requests": requests, "equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--runs", type=int, default=20, help="requests whose overhead is timed")
    parser.add_argument("--requests", type=int, default=0, help="requests drawn twice, alone and by 8 threads")
    arguments = parser.parse_args()
    pipe = Pipeline.load(arguments.bundle, arguments.backend, image_to_image=False)
    report: dict[str, Any] = {
        "model": pipe.bundle.model["name"],
        "backend": pipe.backend.name,
        "precision": pipe.backend.precision,
        "import": import_cost(),
        "outside_engines": request_overhead(pipe, arguments.runs),
    }
    if arguments.requests:
        report["shared_by_threads"] = shared_by_threads(pipe, arguments.requests, 8)
    print(
        f"import sdturbo          {report['import']['seconds'] * 1e3:.0f} ms, loads {report['import']['heavy_modules']}"
    )
    print(f"request outside engines {report['outside_engines']['median_ms']:.2f} ms median")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
