"""This product beside its peers: same checkpoint, prompts, seeds, steps and threads, one ratio per pair. `make bench-peers`.

Each row is stored when it is measured, and a second call goes on where the first stopped. A peer that cannot be installed or
run is a row with the reason, and is tried again.

    python -m benchmarks.compare --model seeded              # every row that is missing
    python -m benchmarks.compare --model seeded --list       # the rows and what is stored of them
    python -m benchmarks.compare --model seeded --row genai-bf16        # this row again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results, steadiness
from benchmarks.in_turn import PROMPT, draw_pair, sides_of
from benchmarks.markdown import table
from benchmarks.pairs import PAIRS, Pair, named
from benchmarks.peers.conversation import Worker
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.peers.forms import DIFFUSERS_FP32, Decoder
from benchmarks.ratios import ratio
from benchmarks.report import report
from benchmarks.results import ROOT, Results, finished_runs
from benchmarks.suite import check_threads
from sdturbo.cpu import available_cpus
from sdturbo.errors import SDTurboError

REFERENCE = DIFFUSERS_FP32

Json = dict[str, Any]


def request_of(model: str, threads: int, steps: int) -> Json:
    """What every worker is asked with: the checkpoint `model`, a tiny decoder, and the prompts that calibrate int8."""
    from sdturbo_export.int8.prompts import prompts_for
    from sdturbo_export.weights.resolve import resolve
    from sdturbo_export.weights.seeded import write_seeded_taesd

    check_threads([threads])
    workspace = ROOT / "build"
    checkpoint = resolve(model, workspace / "checkpoints")
    decoder = workspace / "checkpoints" / "taesd-0"
    if not decoder.exists():
        write_seeded_taesd(decoder)
    weights = hashlib.sha256((decoder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    return {
        "name": model,
        "model_name": checkpoint.name,
        "checkpoint": str(checkpoint.path.resolve()),
        "checkpoint_id": hashlib.sha256(json.dumps(checkpoint.hashes(), sort_keys=True).encode()).hexdigest()[:16],
        "decoder": str(decoder),
        "decoder_id": weights[:16],
        "prompts": list(prompts_for(checkpoint, None).calibration),
        "workspace": str(workspace),
        "threads": threads,
        "steps": steps,
    }


def stored(request: Mapping[str, Any], results_directory: Path) -> Results:
    """The rows that belong to the request, finished or not."""
    settings = {name: request[name] for name in ("checkpoint_id", "decoder_id", "threads", "steps")}
    settings["ceiling"] = steadiness.precision_here()
    return Results(results_directory, "peers", request["model_name"], settings, reopen=True)


def run(pairs: Sequence[Pair], request: Mapping[str, Any], rows: Results, directory: Path, *, again: bool) -> Json:
    """Measure and store the rows of `pairs` that are missing, or with `again` all of them. Returns the document.

    directory: of environments, conversions and caches. The document is finished when it has every row of PAIRS.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for i, pair in enumerate(pairs):
        row = None if again else rows.find({"row": pair.name})
        if row is None:
            row = rows.add({"row": pair.name}, _measured(pair, request, rows, directory))
        print(f"[{i + 1}/{len(pairs)}] {pair.name}: {_result(row)}", file=sys.stderr)
    names = {row["key"]["row"] for row in rows.document["rows"]}
    if rows.unfinished and names >= {pair.name for pair in PAIRS}:
        return rows.finish()
    return rows.document


def _measured(pair: Pair, request: Mapping[str, Any], rows: Results, directory: Path) -> Json:
    words = {"theirs": pair.theirs.words, "ours": pair.ours.words, "asked": pair.asked, "measured": results.origin()}
    precision, threads = rows.document["settings"]["ceiling"], request["threads"]
    documents = [*finished_runs(rows.path.parent), rows.document]
    best = steadiness.best_of(documents, rows.document["machine"]["cpu"], threads, precision)

    def reference(decoder: Decoder) -> Path | None:
        return reference_picture(decoder, request, directory)

    try:
        if precision != "bf16" and "bf16" in (pair.theirs.precision, pair.ours.precision):
            raise PeerUnavailable("this CPU has no bf16, so programs would compute in fp32 under its name")
        sides = sides_of(pair, request, directory)
        row, ceiling = steadiness.draw_steadily(
            lambda: draw_pair(pair, sides, reference),
            lambda: steadiness.best_convolution(precision, threads),
            best,
        )
    except PeerUnavailable as error:
        return {**words, "error": str(error)}
    return {**words, **row, "ceiling": ceiling}


def reference_picture(decoder: Decoder, request: Mapping[str, Any], directory: Path) -> Path | None:
    """diffusers' picture of PROMPT with seed 0 in fp32, made once for each checkpoint, decoder and step count.

    None without diffusers' environment.
    """
    ids = (request["checkpoint_id"], *([request["decoder_id"]] if decoder == "tiny" else []))
    target = directory / f"reference-{'-'.join(ids)}-{request['steps']}.png"
    if not target.is_file():
        cache = directory / "cache" / "reference"
        cache.mkdir(parents=True, exist_ok=True)
        asked = {**request, "decoder": request["decoder"] if decoder == "tiny" else None, "cache": str(cache)}
        try:
            python = python_of(REFERENCE.environment, directory) if REFERENCE.environment else Path(sys.executable)
            log = directory / "reference.log"
            with Worker(python, REFERENCE.worker, REFERENCE.arguments, request["threads"], log) as worker:
                worker.ask("load", **asked)
                worker.ask("draw", prompt=PROMPT, seed=0, steps=request["steps"], out=str(target))
        except PeerUnavailable as error:
            print(f"no PSNR, for the reference cannot be drawn: {error}", file=sys.stderr)
            return None
    return target


def listing(rows: Results) -> str:
    """A table of all rows and of what is stored of them."""
    lines: list[list[str]] = []
    for pair in PAIRS:
        row = next((row for row in rows.document["rows"] if row["key"]["row"] == pair.name), None)
        origin = row["measured"] if row else {}
        sides = (f"{form.program}, {form.decoder}, {form.precision}" for form in (pair.theirs, pair.ours))
        at = f"{origin.get('commit')}, {origin.get('started')}" if row else "–"
        asked = "–" if pair.asked is None else f">= {pair.asked:g}"
        lines.append([pair.name, *sides, asked, _result(row) if row else "missing", at])
    return table(("row", "theirs", "ours", "asked", "their time / ours", "measured at"), lines)


def _result(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    fault = steadiness.fault(row, 0.0)
    return f"{ratio(row)}{f', not steady: {fault}' if fault else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="tiny, small, seeded or a checkpoint's directory")
    parser.add_argument(
        "--row", nargs="+", default=[], metavar="NAME", help="measure these rows, again if they are stored"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the rows and what is stored of them, and measure nothing"
    )
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument(
        "--directory",
        type=Path,
        default=ROOT / "build" / "peers",
        help="directory of environments, conversions and caches",
    )
    results.add_option(parser)
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()

    def rows_of() -> tuple[Json, Results]:
        request = request_of(arguments.model, arguments.threads, arguments.steps)
        return request, stored(request, arguments.results)

    def measure() -> Json:
        pairs = named(arguments.row) if arguments.row else PAIRS
        return run(pairs, *rows_of(), directory, again=bool(arguments.row))

    if arguments.list:
        try:
            print(listing(rows_of()[1]))
        except SDTurboError as error:
            print(f"bench-peers: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    return report("bench-peers", measure, arguments.results)


if __name__ == "__main__":
    sys.exit(main())
