"""ONNX Runtime's CUDA provider under other options than the product's: latency of each stage, and distance of its output.

    python -m benchmarks.gpu.variants build/seeded-fp16
    python -m benchmarks.gpu.variants build/seeded-fp16 nhwc heuristic        # these beside the product's

Needs the backend `cuda`. Prints one JSON document as its last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.runs import milliseconds, random_inputs
from benchmarks.tables import ms, table
from sdturbo import backends
from sdturbo.backends import Backend
from sdturbo.backends.device import PROGRAM_STAGES
from sdturbo.backends.nvidia.gpus import free_memory
from sdturbo.backends.nvidia.onnxruntime import CUDA, MEMORY_SHARE, OrtGpuBackend, provider_options
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import Stage
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo_export.proof.distance import relative_l2

RUNS = 60
PRODUCT = "product"
# options that a variant changes: convolutions in NHWC, a bias fused into its convolution, how cuDNN searches, TF32
VARIANTS: dict[str, dict[str, str]] = {
    PRODUCT: {},
    "nhwc": {"prefer_nhwc": "1"},
    "fuse": {"fuse_conv_bias": "1"},
    "nhwc+fuse": {"prefer_nhwc": "1", "fuse_conv_bias": "1"},
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "tf32": {"use_tf32": "1"},
}

Options = Mapping[str, str]


def chosen(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The variants by name, all without names. The product's comes first: the others are compared with it.

    Raises InvalidRequest for an unknown name.
    """
    if unknown := set(names) - set(VARIANTS):
        raise InvalidRequest(f"Got variants {', '.join(sorted(unknown))}. Expected {', '.join(VARIANTS)}.")
    return {name: options for name, options in VARIANTS.items() if not names or name in (PRODUCT, *names)}


def connect(bundle: Bundle, changed: Options) -> OrtGpuBackend:
    """The backend `cuda` on GPU 0 with some options changed. Raises BackendUnavailable."""
    precision = backends.connect(backends.BackendChoice("cuda", "cuda:0"), bundle).precision
    options = provider_options(CUDA, 0, int(free_memory(0) * MEMORY_SHARE))
    return OrtGpuBackend("cuda", [(CUDA, options | dict(changed))], "cuda", 0, precision)


def measure(
    bundle: Bundle, variants: Mapping[str, Options], make_backend: Callable[[Bundle, Options], Backend], runs: int
) -> Iterator[dict[str, Any]]:
    """A row per variant and stage at the smallest batch size. If the library refuses a variant, the row has its error."""
    size = bundle.batch_sizes[0]
    first: dict[str, NDArray[Any]] = {}
    for variant, options in variants.items():
        for name in PROGRAM_STAGES:
            row: dict[str, Any] = {"variant": variant, "stage": name}
            try:
                output, figures = _run(bundle, bundle.stages[name], size, make_backend(bundle, options), runs)
            except SDTurboError as error:
                yield row | {"error": str(error).splitlines()[0]}
                continue
            yield row | figures | {"relative_l2": relative_l2(output, first.setdefault(name, output))}


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}. All by default")
    arguments = parser.parse_args(command_line)
    rows: list[dict[str, Any]] = []
    try:
        variants, bundle = chosen(arguments.variants), Bundle.load(arguments.bundle)
        connect(bundle, {})  # so that a machine without a GPU ends it
        for row in measure(bundle, variants, connect, RUNS):
            rows.append(row)
            print(f"{row['variant']}, {row['stage']}: {row.get('error', 'done')}", file=sys.stderr)
    except SDTurboError as error:
        print(f"variants: {error}", file=sys.stderr)
        return error.exit_code
    header = ("variant, stage", "median ms", "load s", "relative L2 to the product's")
    print(table(header, [_cells(row) for row in rows]))
    print(json.dumps({"bundle_id": bundle.bundle_id, "precision": bundle.precision, "runs": RUNS, "rows": rows}))
    return 0


def _run(bundle: Bundle, stage: Stage, size: int, backend: Backend, runs: int) -> tuple[NDArray[Any], dict[str, float]]:
    """The stage's output and its times. Its memory is free again afterwards."""
    inputs = random_inputs(stage, size)
    start = time.perf_counter()
    session = backend.session(bundle.graph(stage.name, size), stage, size)
    load_s = time.perf_counter() - start
    (output,) = session.run(inputs).values()
    median = np.median(milliseconds(lambda _: session.run(inputs), runs))
    return output, {"load_s": load_s, "median_ms": float(median)}


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['variant']}, {row['stage']}"
    if "error" in row:
        return [f"{name}: {row['error']}", "–", "–", "–"]
    return [name, ms(row["median_ms"]), f"{row['load_s']:.1f}", f"{row['relative_l2']:.1e}"]


if __name__ == "__main__":
    sys.exit(main())
