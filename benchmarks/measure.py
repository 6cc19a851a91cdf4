"""One configuration in a process of its own, so that its load, first picture and peak memory are its own.

    python -m benchmarks.measure '{"bundle": "build/tiny", "backend": "openvino", "precision": "fp32", "threads": 2}'

The last line of output is the measurement, or {"error": ...}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdturbo import Pipeline
from sdturbo.backends import BackendChoice, connect
from sdturbo.bundle import Bundle
from sdturbo.commands import bench
from sdturbo.errors import InvalidRequest, SDTurboError

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """An engine to measure, and the requests to it. threads: CPU threads."""

    backend: str
    precision: str
    threads: int
    batch_size: int = 1
    steps: int = 1

    @property
    def key(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision}, batch {self.batch_size}, {self.threads} threads, {self.steps} steps"


def run(bundle: Path, configuration: Configuration, runs: int, *, cold_first: bool = False) -> dict[str, Any]:
    """The measurement in a new process with a cache of its own, or {"error": words}.

    cold_first: load in another process before, with the cache empty (`cold_load_ms`). `load_ms` is then that of a second
    load, with compiled blobs and hashes from the cache and files from the page cache.
    """
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="cache-") as cache:
        if not cold_first:
            return _ask(bundle, configuration, runs, cache)
        cold = _ask(bundle, configuration, 0, cache)
        return (
            cold if "error" in cold else {**_ask(bundle, configuration, runs, cache), "cold_load_ms": cold["load_ms"]}
        )


def _ask(bundle: Path, configuration: Configuration, runs: int, cache: str) -> dict[str, Any]:
    request = json.dumps({**configuration.key, "bundle": str(bundle.resolve()), "runs": runs})
    command = [sys.executable, "-m", "benchmarks.measure", request]
    environment = {**os.environ, "SDTURBO_CACHE_DIR": cache}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": f"the process ended with status {done.returncode}"}
    return json.loads(lines[-1])


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load and time the configuration in this process, with a pipeline of its batch size alone. With 0 runs, only load."""

    def load() -> Pipeline:
        bundle = Bundle.load(request["bundle"], trust_unchanged=True)  # as Pipeline.load does
        if request["batch_size"] not in bundle.batch_sizes:
            raise InvalidRequest(
                f"Got batch size {request['batch_size']}. The bundle has {', '.join(map(str, bundle.batch_sizes))}."
            )
        bundle = dataclasses.replace(bundle, batch_sizes=(request["batch_size"],))
        choice = BackendChoice(request["backend"], precision=request["precision"], num_threads=request["threads"])
        return Pipeline(bundle, connect(choice, bundle), image_to_image=False)

    if not request["runs"]:
        start = time.perf_counter()
        load()
        return {"load_ms": (time.perf_counter() - start) * 1e3}
    return bench.measure(
        load, runs=request["runs"], num_inference_steps=request["steps"], batch_size=request["batch_size"]
    )


if __name__ == "__main__":
    try:
        answer = measure(json.loads(sys.argv[1]))
    except SDTurboError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
