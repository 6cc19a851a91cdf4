"""How much of the machine's ceiling each stage reaches, and on paper what a named GPU could not go below. `make roofline`.

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
from benchmarks.measure import Configuration
from benchmarks.results import Results
from benchmarks.suite import check_threads, engines
from benchmarks.tables import document_tables, table
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
        raise InvalidRequest(f"The bundle's smallest batch size is {size}; expected 1, what the figures are for.")
    return {name: operations(bundle.graph(name, 1)) for name in STAGES}


def run(bundle_path: Path, store: Path, threads: int, runs: int) -> dict[str, Any]:
    """Measure the ceilings and every engine's stages; store and return the shares."""
    check_threads([threads])
    bundle = Bundle.load(bundle_path)
    work = work_of(bundle)
    settings = {"bundle_id": bundle.bundle_id, "threads": threads, "runs": runs}
    rows = Results(store, "roofline", results.name_of(bundle), settings)
    for precision in PRECISIONS:
        key = {"ceiling": precision}
        if rows.find(key) is None:
            print(f"ceiling {precision}", file=sys.stderr)
            try:
                rows.add(key, ceiling.ceilings(precision, threads))
            except BackendUnavailable as error:
                rows.add(key, {"error": str(error)})
    for backend, precision in engines(bundle):
        one = Configuration(backend, precision, threads)
        if rows.find(one.key) is None:
            print(one.label, file=sys.stderr)
            measured = measure.run(bundle_path, one, runs)
            rows.add(one.key, measured if "error" in measured else {"stages": stages(work, measured)})
    return rows.finish()


def stages(work: Work, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each stage and the whole picture: flops, seconds and flops by kind."""
    parts = {name: measured["parts_ms"][name]["median"] for name in STAGES}
    parts["whole"] = measured["parts_ms"]["total"]["median"]
    every = {**work, "whole": [one for name in STAGES for one in work[name]]}
    return {name: {"flops": flops(every[name]), "seconds": ms / 1e3} for name, ms in parts.items()}


def paper(work: Work, gpu: Gpu) -> str:
    """The tables of a GPU's lower bounds: by stage, and the operations that take longest."""
    every = {**work, "whole": [one for found in work.values() for one in found]}
    lines = [
        [
            name,
            f"{flops(found) / 1e9:.0f}",
            f"{flops(found, 'attention') / 1e9:.0f}",
            f"{2e3 * sum(one.weights for one in found) / 1e9:.0f}",
            *(f"{1e3 * sum(seconds(one, gpu) for one in found):.2f}" for seconds in (compute_seconds, memory_seconds)),
            f"{1e3 * lower_bound(found, gpu):.2f}",
        ]
        for name, found in every.items()
    ]
    slowest = sorted(every["whole"], key=lambda one: lower_bound([one], gpu), reverse=True)[:SLOWEST]
    header = (gpu.name, "GFLOP", "in attention", "weights MB", "compute ms", "memory ms", "bound ms")
    operations_table = table(
        ("operation", "kind", "GFLOP", "compute ms", "memory ms"),
        [
            [
                one.name,
                one.kind,
                f"{one.flops / 1e9:.1f}",
                *(f"{1e3 * seconds(one, gpu):.3f}" for seconds in (compute_seconds, memory_seconds)),
            ]
            for one in slowest
        ],
    )
    return f"{table(header, lines)}\n\n{gpu.source}. fp16, batch 1, one step, ideal fusion.\n\n{operations_table}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--gpu", help=f"lower bounds on paper for {', '.join(GPUS)}; measures nothing")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--runs", type=int, default=5, help="requests an engine")
    results.add_option(parser)
    arguments = parser.parse_args()
    try:
        if arguments.gpu is not None:
            if arguments.gpu not in GPUS:
                raise InvalidRequest(f"Got GPU {arguments.gpu!r}; expected one of {', '.join(GPUS)}.")
            gpu = GPUS[arguments.gpu]
            work = work_of(Bundle.load(arguments.bundle))
            print(paper(work, gpu))
            bounds = {name: lower_bound(found, gpu) * 1e3 for name, found in work.items()}
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
