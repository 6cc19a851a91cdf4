"""A worker's side of the conversation: a JSON object per line in, and one out. Standard library only.

{"do": "prepare", "checkpoint", "model"}         convert the checkpoint to the program's form, once
{"do": "load", "model", "threads", ...}          until the next draw would run at full speed
{"do": "draw", "prompt", "seed", "steps", "out"} a picture. "out" is a PNG to write, after the clock has stopped
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Peer(Protocol):
    """The work of a worker. `draw` returns a PIL image, and alone is timed."""

    def prepare(self, request: Mapping[str, Any]) -> None: ...
    def load(self, request: Mapping[str, Any]) -> None: ...
    def draw(self, prompt: str, seed: int, steps: int) -> Any: ...


def answer_lines(peer: Peer) -> None:
    """Answer requests until standard input ends. The output of libraries goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(peer, json.loads(line))) + "\n")


def _answer(peer: Peer, request: Mapping[str, Any]) -> dict[str, Any]:
    actions: dict[str, Callable[[], Any]] = {
        "prepare": lambda: peer.prepare(request),
        "load": lambda: peer.load(request),
        "draw": lambda: peer.draw(request["prompt"], request["seed"], request["steps"]),
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
