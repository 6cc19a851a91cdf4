"""A worker's side of the conversation: a JSON object per line in, and one out. Standard library only.

{"do": "prepare", "model", "base", ...}          convert the checkpoint, or the conversion `base`, to the directory `model`
{"do": "load", "model", "threads", "cache", ...} until the next draw would run at full speed
{"do": "draw", "prompt", "seed", "steps", "out"} a picture. "out" is a PNG to write, after the clock has stopped

The checkpoint, the directory of the tiny decoder and the prompts for calibration are in each request.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Program(Protocol):
    """A program that draws. `draw` returns a PIL image, and alone is timed."""

    def load(self, request: Mapping[str, Any]) -> None: ...
    def draw(self, prompt: str, seed: int, steps: int) -> Any: ...


class Converter(Protocol):
    """A tool that makes a program's own form of a checkpoint."""

    def prepare(self, request: Mapping[str, Any]) -> None: ...


def answer_lines(worker: Program | Converter) -> None:
    """Answer requests until standard input ends. The output of libraries goes to standard error."""
    hidden: dict[str, Any] = {"openvino_telemetry": None}  # so that OpenVINO reports nothing
    sys.modules.update(hidden)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(worker, json.loads(line))) + "\n")


def _answer(worker: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    actions: dict[str, Callable[[], Any]] = {
        "prepare": lambda: worker.prepare(request),
        "load": lambda: worker.load(request),
        "draw": lambda: worker.draw(request["prompt"], request["seed"], request["steps"]),
    }
    try:
        start = time.perf_counter()
        image = actions[request["do"]]()
        milliseconds = (time.perf_counter() - start) * 1e3
        if request.get("out"):
            image.save(request["out"])
    except Exception as error:  # any error of the program is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"ms": milliseconds}
