"""One row: two forms of programs, loaded cold, loaded warm, and drawing in turn. Each is a process of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pairs import Pair
from benchmarks.peers.conversation import Worker
from benchmarks.peers.conversions import Converted, converted
from benchmarks.peers.environments import python_of, source_of
from benchmarks.peers.forms import Decoder, Form
from sdturbo.golden import difference

PROMPT = "a red house by a lake"
EQUAL = 100.0  # decibels that stand for equal pictures, because JSON has no infinity

Reference = Callable[[Decoder], Path | None]


@dataclass(frozen=True, slots=True)
class Side:
    """A form that is ready to start. request: of its loads. cache: its directory for compiled graphs."""

    form: Form
    python: Path
    arguments: tuple[str, ...]
    request: Mapping[str, Any]
    cache: Path
    log: Path
    conversion: Converted | None

    def worker(self) -> Worker:
        return Worker(self.python, self.form.worker, self.arguments, self.request["threads"], self.log)

    def load(self, worker: Worker, out: Path | None = None) -> dict[str, float]:
        """Milliseconds of the load and of the first picture after it. out: a file for the picture."""
        load = worker.ask("load", **self.request)["ms"]
        return {"load": load, "first": self.draw(worker, PROMPT, 0, out)}

    def draw(self, worker: Worker, prompt: str, seed: int, out: Path | None = None) -> float:
        """Milliseconds of a picture."""
        steps = self.request["steps"]
        return worker.ask("draw", prompt=prompt, seed=seed, steps=steps, out=str(out) if out else None)["ms"]

    def cold(self, out: Path) -> dict[str, float]:
        """As `load`, with an empty cache. Files may lie in the page cache."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir(parents=True)
        with self.worker() as worker:
            return self.load(worker, out)


def sides_of(pair: Pair, request: Mapping[str, Any], directory: Path) -> dict[str, Side]:
    """The pair's "theirs" and "ours" with their environments, sources and conversions, made if they are not there.

    Raises PeerUnavailable.
    """
    return {
        name: _side(name, form, request, directory) for name, form in (("theirs", pair.theirs), ("ours", pair.ours))
    }


def _side(name: str, form: Form, request: Mapping[str, Any], directory: Path) -> Side:
    python = python_of(form.environment, directory) if form.environment else Path(sys.executable)
    source = (str(source_of(form.repository, directory)),) if form.repository else ()
    conversion = converted(form.conversion, request, directory) if form.conversion else None
    cache = directory / "cache" / name
    asked = {
        **request,
        "decoder": request["decoder"] if form.decoder == "tiny" else None,
        "model": str(conversion.path) if conversion else None,
        "cache": str(cache),
    }
    log = directory / f"{form.environment.name if form.environment else 'sdturbo'}.log"
    return Side(form, python, form.arguments + source, asked, cache, log, conversion)


def draw_pair(pair: Pair, sides: Mapping[str, Side], reference: Reference) -> dict[str, Any]:
    """The row's times in milliseconds, memory in megabytes, and distances to PyTorch's picture in decibels.

    sides: see `sides_of`. reference: PyTorch's fp32 picture of PROMPT with seed 0 and a decoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = {name: Path(folder) / f"{name}.png" for name in sides}
        cold = {name: side.cold(pictures[name]) for name, side in sides.items()}
        distances = {name: _distance(pictures[name], side.form, reference) for name, side in sides.items()}
    warm: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(pair.loads - 1):
        for name, side in sides.items():
            with side.worker() as worker:
                warm[name].append(side.load(worker))
    times: dict[str, list[float]] = {name: [] for name in sides}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(side.worker()) for name, side in sides.items()}
        for name, side in sides.items():
            warm[name].append(side.load(workers[name]))
        for i in range(1, pair.runs + 1):
            for name in list(sides) if i % 2 else reversed(list(sides)):
                times[name].append(sides[name].draw(workers[name], f"{PROMPT}, number {i}", i))
        memory = {name: worker.memory_mb() for name, worker in workers.items()}
    return {
        "times_ms": times,
        "loads_ms": {name: {"cold": [cold[name]], "warm": warm[name]} for name in sides},
        "memory_mb": memory,
        "psnr_db": distances,
        "conversion_ms": {name: side.conversion.ms if side.conversion else None for name, side in sides.items()},
        "conversion": {name: side.conversion.key if side.conversion else None for name, side in sides.items()},
    }


def _distance(picture: Path, form: Form, reference: Reference) -> float | None:
    expected = reference(form.decoder) if form.same_noise else None
    return min(difference(_pixels(picture), _pixels(expected))[0], EQUAL) if expected else None


def _pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))
