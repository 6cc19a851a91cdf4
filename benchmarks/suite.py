"""This product on this machine: every engine that runs here, then its scaling. `make bench`.

Each configuration runs in a process of its own. Rows are stored as they are measured. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure, results
from benchmarks.measure import Configuration
from benchmarks.report import report
from benchmarks.results import Results
from sdturbo import backends
from sdturbo.backends import PRECISIONS
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MAX_STEPS
from sdturbo.cpu import available_cpus
from sdturbo.errors import BackendUnavailable, InvalidRequest

SCALING_RUNS = 3


def engines(bundle: Bundle) -> list[tuple[str, str]]:
    """Every (backend, precision) that runs this bundle here, on the device that the backend prefers.

    Raises BackendUnavailable if none does.
    """
    offers = [offer for name in backends.names() for offer in backends.offers(name, bundle)]
    offers = [offer for offer in offers if offer.refuses_all or offer.precision in PRECISIONS]  # null computes nothing
    if not any(offer.runs for offer in offers):
        reasons = "\n".join(f"  - {offer.reason}" for offer in offers)
        raise BackendUnavailable(f"No backend can run here, so nothing is measured:\n{reasons}")
    return list(dict.fromkeys((offer.backend, offer.precision) for offer in offers if offer.runs))


def check_threads(threads: Sequence[int]) -> list[int]:
    """The thread counts in order, without doubles. Raises InvalidRequest for one that this machine has no cores for."""
    cpus = available_cpus()
    wrong = [count for count in threads if not 1 <= count <= cpus]
    if wrong:
        raise InvalidRequest(
            f"Got thread counts {', '.join(map(str, wrong))}. This machine has {cpus} CPUs: expected 1 to {cpus}."
        )
    return sorted(set(threads))


def configurations(
    engines: Sequence[tuple[str, str]], batch_sizes: Sequence[int], threads: Sequence[int], steps: Sequence[int]
) -> list[Configuration]:
    """Every engine once with all threads, then each of them along threads, steps and batch sizes, one at a time."""
    most = threads[-1]
    base = [Configuration(name, precision, most) for name, precision in engines]
    scaling: list[Configuration] = []
    for name, precision in engines:
        scaling += [Configuration(name, precision, count) for count in threads[:-1]]
        scaling += [Configuration(name, precision, most, steps=count) for count in steps if count != 1]
        scaling += [Configuration(name, precision, most, batch_size=size) for size in batch_sizes if size != 1]
    return base + scaling


def run(bundle_path: Path, results_directory: Path, threads: Sequence[int], runs: int) -> dict[str, object]:
    """Measure, store and print every row. Returns the stored document."""
    threads = check_threads(threads)
    bundle = Bundle.load(bundle_path)
    settings = {"bundle_id": bundle.bundle_id, "threads": threads, "runs": runs, "batch_sizes": bundle.batch_sizes}
    rows = Results(results_directory, "bench", results.name_of(bundle), settings)
    if rows.resumed:
        print("going on with an interrupted run", file=sys.stderr)
    asked = configurations(engines(bundle), bundle.batch_sizes, threads, range(1, MAX_STEPS + 1))
    for i, configuration in enumerate(asked):
        row = rows.find(configuration.key)
        if row is None:
            is_base = (configuration.batch_size, configuration.steps, configuration.threads) == (1, 1, threads[-1])
            count = runs if is_base else min(runs, SCALING_RUNS)
            row = rows.add(configuration.key, measure.run(bundle_path, configuration, count, cold_first=is_base))
        result = row.get("error") or f"{row['parts_ms']['total']['median']:.1f} ms"
        print(f"[{i + 1}/{len(asked)}] {configuration.label}: {result}", file=sys.stderr)
    return rows.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10, help="requests per configuration")
    most = available_cpus()
    parser.add_argument("--threads", type=int, nargs="+", default=list(range(1, most + 1)), help="thread counts")
    results.add_option(parser)
    arguments = parser.parse_args()
    return report(
        "bench",
        lambda: run(arguments.bundle, arguments.results, arguments.threads, arguments.runs),
        arguments.results,
    )


if __name__ == "__main__":
    sys.exit(main())
