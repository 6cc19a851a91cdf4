"""Each stage's share of the machine's ceiling, and a named GPU's lower bounds on paper. `make roofline`.

Work is counted from the bundle's own graphs, so a rewrite that saves work lowers it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ceiling, measure, results
from benchmarks.flops import Operation, flops, operations
from benchmarks.gpus import GPUS, Gpu, compute_seconds, lower_bound, memory_seconds
from benchmarks.markdown import table
from benchmarks.measure import Configuration
from benchmarks.results import Results
from benchmarks.suite import check_threads, engines
from benchmarks.tables import document_tables
from sdturbo.bundle import Bundle
from sdturbo.cpu import available_cpus
from sdturbo.errors import BackendUnavailable, InvalidRequest, SDTurboError

STAGES = ("text_encoder", "denoiser", "decoder")
PRECISIONS = ("fp32", "bf16", "int8")
SLOWEST = 10

Work = Mapping[str, Sequence[Operation]]


def work_of(bundle: Bundle) -> dict[str, list[Operation]]:
    """The products of one picture of one step, by stage."""
    size = bundle.batch_sizes[0]
    if size != 1:
        raise InvalidRequest(f"The bundle's smallest batch size is {size}. Expected 1, which the figures are for.")
    return {name: operations(bundle.graph(name, 1)) for name in STAGES}


def run(bundle_path: Path, results_directory: Path, threads: int, runs: int) -> dict[str, Any]:
    """Measure the ceilings and every engine's stages. Store and return the shares."""
    check_threads([threads])
    bundle = Bundle.load(bundle_path)
    work = work_of(bundle)
    settings = {"bundle_id": bundle.bundle_id, "threads": threads, "runs": runs}
    rows = Results(results_directory, "roofline", results.name_of(bundle), settings)
    for precision in PRECISIONS:
        key = {"ceiling": precision}
        if rows.find(key) is None:
            print(f"ceiling {precision}", file=sys.stderr)
            try:
                rows.add(key, ceiling.ceilings(precision, threads))
            except BackendUnavailable as error:
                rows.add(key, {"error": str(error)})
    for backend, precision in engines(bundle):
        configuration = Configuration(backend, precision, threads)
        if rows.find(configuration.key) is None:
            print(configuration.label, file=sys.stderr)
            measured = measure.run(bundle_path, configuration, runs)
            rows.add(configuration.key, measured if "error" in measured else {"stages": stages(work, measured)})
    return rows.finish()


def stages(work: Work, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each stage and the whole picture: flops, seconds and flops by kind."""
    parts = {name: measured["parts_ms"][name]["median"] for name in STAGES}
    parts["whole"] = measured["parts_ms"]["total"]["median"]
    with_whole = {**work, "whole": [product for name in STAGES for product in work[name]]}
    return {name: {"flops": flops(with_whole[name]), "seconds": ms / 1e3} for name, ms in parts.items()}


def paper(work: Work, gpu: Gpu) -> str:
    """The tables of a GPU's lower bounds: by stage, and the operations that take longest."""
    with_whole = {**work, "whole": [product for products in work.values() for product in products]}
    lines = [
        [
            name,
            f"{flops(products) / 1e9:.0f}",
            f"{flops(products, 'attention') / 1e9:.0f}",
            f"{2e3 * sum(product.weights for product in products) / 1e9:.0f}",
            f"{1e3 * sum(compute_seconds(product, gpu) for product in products):.2f}",
            f"{1e3 * sum(memory_seconds(product, gpu) for product in products):.2f}",
            f"{1e3 * lower_bound(products, gpu):.2f}",
        ]
        for name, products in with_whole.items()
    ]
    slowest = sorted(with_whole["whole"], key=lambda product: lower_bound([product], gpu), reverse=True)[:SLOWEST]
    header = (gpu.name, "GFLOP", "in attention", "weights MB", "compute ms", "memory ms", "bound ms")
    operations_table = table(
        ("operation", "kind", "GFLOP", "compute ms", "memory ms"),
        [
            [
                product.name,
                product.kind,
                f"{product.flops / 1e9:.1f}",
                *(f"{1e3 * seconds(product, gpu):.3f}" for seconds in (compute_seconds, memory_seconds)),
            ]
            for product in slowest
        ],
    )
    return f"{table(header, lines)}\n\n{gpu.source}. fp16, batch 1, one step, ideal fusion.\n\n{operations_table}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--gpu", help=f"lower bounds on paper for {', '.join(GPUS)}. Measures nothing")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--runs", type=int, default=5, help="requests per engine")
    results.add_option(parser)
    arguments = parser.parse_args()
    try:
        if arguments.gpu is not None:
            if arguments.gpu not in GPUS:
                raise InvalidRequest(f"Got GPU {arguments.gpu!r}. Expected one of {', '.join(GPUS)}.")
            gpu = GPUS[arguments.gpu]
            work = work_of(Bundle.load(arguments.bundle))
            print(paper(work, gpu))
            bounds = {name: lower_bound(products, gpu) * 1e3 for name, products in work.items()}
            print(
                json.dumps(
                    {"gpu": gpu.name, "source": gpu.source, "bound_ms": bounds, "whole_ms": sum(bounds.values())}
                )
            )
            return 0
        document = run(arguments.bundle, arguments.results, arguments.threads, arguments.runs)
    except SDTurboError as error:
        print(f"roofline: {error}", file=sys.stderr)
        return error.exit_code
    print(document_tables(document))
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
