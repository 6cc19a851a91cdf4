"""ONNX Runtime's CUDA provider under other options than the product's: each stage's latency, memory and distance.

    python -m benchmarks.gpu.variants build/seeded-fp16
    python -m benchmarks.gpu.variants build/seeded-fp16 heuristic "fused bias"        # these beside the product's

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
from benchmarks.markdown import ms, table
from sdturbo import backends
from sdturbo.backends import Backend, Session
from sdturbo.backends.nvidia.gpus import free_memory
from sdturbo.backends.nvidia.onnxruntime import CUDA, MEMORY_SHARE, OrtGpuBackend, provider_options
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import Stage
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo_export.proof.distance import relative_l2

RUNS = 60
PRODUCT = "product"
# the options that a variant changes
VARIANTS: dict[str, dict[str, str]] = {
    PRODUCT: {},
    "channels first": {"prefer_nhwc": "0"},
    "fused bias": {"fuse_conv_bias": "1"},
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "small workspace": {"cudnn_conv_use_max_workspace": "0"},
    "sums in float16": {"enable_skip_layer_norm_strict_mode": "0"},
    "no tensor cores": {"use_tf32": "0"},
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
    product = backends.connect(backends.BackendChoice("cuda", "cuda:0"), bundle)
    options = provider_options(CUDA, 0, int(free_memory(0) * MEMORY_SHARE), product.precision, product.form)
    return OrtGpuBackend("cuda", [(CUDA, options | dict(changed))], "cuda", 0, product.precision, product.form)


def measure(
    bundle: Bundle,
    variants: Mapping[str, Options],
    make_backend: Callable[[Bundle, Options], Backend],
    runs: int,
    free: Callable[[], int],
) -> Iterator[dict[str, Any]]:
    """A row per variant and stage at the smallest batch size. If the library refuses a variant, the row has its error.

    free: gives the free bytes of the device.
    """
    size = bundle.batch_sizes[0]
    first: dict[str, NDArray[Any]] = {}
    for variant, options in variants.items():
        for name, stage in bundle.stages.items():
            row: dict[str, Any] = {"variant": variant, "stage": name}
            try:
                before, backend = free(), make_backend(bundle, options)
                session, load_s = _load(bundle, stage, size, backend)
                inputs = random_inputs(stage, size)
                (output,) = session.run(inputs).values()
                median = float(np.median(milliseconds(lambda _, s=session, i=inputs: s.run(i), runs)))
                figures = {"load_s": load_s, "median_ms": median, "bytes": before - free()}
                del session  # its memory is the next one's
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
        for row in measure(bundle, variants, connect, RUNS, lambda: free_memory(0)):
            rows.append(row)
            print(f"{row['variant']}, {row['stage']}: {row.get('error', 'done')}", file=sys.stderr)
    except SDTurboError as error:
        print(f"variants: {error}", file=sys.stderr)
        return error.exit_code
    header = ("variant, stage", "median ms", "load s", "GPU memory, GB", "relative L2 to the product's")
    print(table(header, [_cells(row) for row in rows]))
    print(json.dumps({"bundle_id": bundle.bundle_id, "precision": bundle.precision, "runs": RUNS, "rows": rows}))
    return 0


def _load(bundle: Bundle, stage: Stage, size: int, backend: Backend) -> tuple[Session, float]:
    """A session and the seconds that it took."""
    start = time.perf_counter()
    session = backend.session(bundle.graph(stage.name, size, form=backend.form), stage, size)
    return session, time.perf_counter() - start


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['variant']}, {row['stage']}"
    if "error" in row:
        return [f"{name}: {row['error']}", "–", "–", "–", "–"]
    figures = [ms(row["median_ms"]), f"{row['load_s']:.1f}", f"{row['bytes'] / 1e9:.2f}", f"{row['relative_l2']:.1e}"]
    return [name, *figures]


if __name__ == "__main__":
    sys.exit(main())
