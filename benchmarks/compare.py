"""This product beside its peers: same checkpoint, prompts, seeds, steps and threads, one ratio per pair. `make bench-peers`.

A peer and one of our engines are loaded at the same time and draw A B A B. A peer that cannot be installed or run is a row
with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.checkpoint import checkpoint_of
from benchmarks.peers.conversation import Worker
from benchmarks.peers.environments import PEERS, PeerSpec, PeerUnavailable, python_of
from benchmarks.report import report
from benchmarks.results import ROOT, Results
from benchmarks.suite import check_threads, engines
from sdturbo.bundle import Bundle
from sdturbo.cpu import available_cpus
from sdturbo.errors import InvalidRequest
from sdturbo.golden import difference
from sdturbo_export.exchange import new_directory

PROMPT = "a red house by a lake"
REFERENCE = PEERS[0]
EQUAL = 100.0  # decibels that stand for equal pictures, because JSON has no infinity

Engine = tuple[str, str]


def pairs(ours: Sequence[Engine], peers: Sequence[PeerSpec]) -> list[tuple[PeerSpec, Engine]]:
    """Our first engine against every peer, and ONNX Runtime in fp32 against the peer that runs on it too."""
    plain = ("onnxruntime", "fp32")
    fastest = [(peer, ours[0]) for peer in peers]
    return fastest + [(peer, plain) for peer in peers if peer.name == "optimum-onnx" and plain in ours[1:]]


def compare(
    peer: PeerSpec, engine: Engine, request: Mapping[str, Any], runs: int, directory: Path, reference: Path | None
) -> dict[str, Any]:
    """One row. request: checkpoint, bundle, threads, steps. reference: PyTorch's fp32 picture of PROMPT with seed 0."""
    threads, steps = request["threads"], request["steps"]
    python = python_of(peer.environment, directory)
    log = directory / f"{peer.environment.name}.log"
    model, prepare_ms = converted(peer, python, request, directory) if peer.converts else (None, None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(Worker(sys.executable, "sdturbo_worker.py", engine, threads))
        other = stack.enter_context(Worker(python, peer.worker, peer.arguments, threads, log))
        sides = {"ours": ours, "peer": other}
        load: dict[str, float] = {}
        first: dict[str, float] = {}
        pictures: dict[str, Path] = {}
        for side, worker in sides.items():
            load[side] = worker.ask("load", **request, model=str(model))["ms"]
            pictures[side] = folder / f"{side}.png"
            first[side] = worker.ask("draw", prompt=PROMPT, seed=0, steps=steps, out=str(pictures[side]))["ms"]
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for i in range(1, runs + 1):
            for side, worker in sides.items():
                times[side].append(worker.ask("draw", prompt=f"{PROMPT}, number {i}", seed=i, steps=steps)["ms"])
        distances = {
            side: min(difference(_pixels(picture), _pixels(reference))[0], EQUAL) if reference else None
            for side, picture in pictures.items()
        }
    ratios = [theirs / mine for theirs, mine in zip(times["peer"], times["ours"], strict=True)]
    return {
        "prepare_ms": prepare_ms,
        "median_ms": float(np.median(times["peer"])),
        "our_median_ms": float(np.median(times["ours"])),
        "ratios": ratios,
        "ratio": float(np.median(ratios)),
        "load_and_first_ms": load["peer"] + first["peer"],
        "our_load_and_first_ms": load["ours"] + first["ours"],
        "psnr": distances["peer"] if peer.same_noise else None,
        "our_psnr": distances["ours"],
        "times_ms": times,
    }


def converted(peer: PeerSpec, python: Path, request: Mapping[str, Any], directory: Path) -> tuple[Path, float]:
    """(The peer's own form of the checkpoint, milliseconds that its conversion took), made once for each checkpoint."""
    target = directory / "models" / f"{peer.environment.name}-{request['checkpoint_id']}"
    note = target.with_name(f"{target.name}.json")
    if not (target.is_dir() and note.is_file()):
        shutil.rmtree(target, ignore_errors=True)
        log = directory / f"{peer.environment.name}.log"
        with new_directory(target) as partial:
            with Worker(python, peer.worker, peer.arguments, request["threads"], log) as worker:
                answer = worker.ask("prepare", checkpoint=request["checkpoint"], model=str(partial))
            note.write_text(json.dumps(answer), encoding="utf-8")
    return target, json.loads(note.read_text(encoding="utf-8"))["ms"]


def checkpoint_id(bundle: Bundle) -> str:
    """A name for the weights that the bundle was built from. All bundles of them use the same conversions."""
    return hashlib.sha256(json.dumps(bundle.model, sort_keys=True).encode()).hexdigest()[:16]


def reference_picture(request: Mapping[str, Any], directory: Path) -> Path:
    """diffusers' picture of PROMPT with seed 0 in fp32, made once for each checkpoint and step count."""
    target = directory / f"reference-{request['checkpoint_id']}-{request['steps']}.png"
    if not target.is_file():
        python = python_of(REFERENCE.environment, directory)
        log = directory / f"{REFERENCE.environment.name}.log"
        with Worker(python, REFERENCE.worker, REFERENCE.arguments, request["threads"], log) as worker:
            worker.ask("load", **request)
            worker.ask("draw", prompt=PROMPT, seed=0, steps=request["steps"], out=str(target))
    return target


def run(
    bundle_path: Path,
    checkpoint: Path,
    results_directory: Path,
    directory: Path,
    peers: Sequence[PeerSpec],
    **settings: int,
) -> dict[str, Any]:
    """Compare with every peer. Store and return the rows. directory: of the environments. settings: threads, steps, runs."""
    check_threads([settings["threads"]])
    directory.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.load(bundle_path)
    request: dict[str, Any] = {
        "bundle_id": bundle.bundle_id,
        "threads": settings["threads"],
        "steps": settings["steps"],
    }
    rows = Results(results_directory, "peers", results.name_of(bundle), {**request, "runs": settings["runs"]})
    request |= {
        "bundle": str(bundle_path.resolve()),
        "checkpoint": str(checkpoint.resolve()),
        "checkpoint_id": checkpoint_id(bundle),
    }
    try:
        reference = reference_picture(request, directory)
    except PeerUnavailable as error:
        reference = None
        print(f"no PSNR, for the reference cannot be drawn: {error}", file=sys.stderr)
    prepared: set[Engine] = set()
    for peer, engine in pairs(engines(bundle), peers):
        key = {"peer": peer.name, "backend": engine[0], "precision": engine[1]}
        row = rows.find(key)
        if row is None:
            try:
                if engine not in prepared:
                    with Worker(sys.executable, "sdturbo_worker.py", engine, request["threads"]) as worker:
                        worker.ask("prepare", **request)
                    prepared.add(engine)
                row = rows.add(key, compare(peer, engine, request, settings["runs"], directory, reference))
            except PeerUnavailable as error:
                row = rows.add(key, {"error": str(error)})
        result = row.get("error") or f"{row['ratio']:.2f} times our time"
        print(f"{peer.name} beside {' '.join(engine)}: {result}", file=sys.stderr)
    return rows.finish()


def _pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


def main() -> int:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--model", required=True, help="the checkpoint of the bundle: tiny, small, seeded or a directory"
    )
    parser.add_argument("--runs", type=int, default=5, help="pairs per peer")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--peers", nargs="+", default=names, help=f"of: {', '.join(names)}")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build" / "peers", help="directory of the environments"
    )
    results.add_option(parser)
    arguments = parser.parse_args()

    def measure() -> dict[str, Any]:
        unknown = [name for name in arguments.peers if name not in names]
        if unknown:
            raise InvalidRequest(f"Got peers {unknown}. Expected some of {names}.")
        checkpoint = checkpoint_of(Bundle.load(arguments.bundle), arguments.model).path
        return run(
            arguments.bundle,
            checkpoint,
            arguments.results,
            arguments.directory.absolute(),
            [peer for peer in PEERS if peer.name in arguments.peers],
            threads=arguments.threads,
            steps=arguments.steps,
            runs=arguments.runs,
        )

    return report("bench-peers", measure, arguments.results)


if __name__ == "__main__":
    sys.exit(main())
