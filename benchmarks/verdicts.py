"""The figures that a run under load must keep, each with its limit, and the end of every such command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measured figure that must be at most, or at least, `limit`. A figure that is not a number holds nowhere."""

    what: str
    measured: float
    sign: Literal["<=", ">="]
    limit: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.limit if self.sign == "<=" else self.measured >= self.limit

    def line(self) -> dict[str, Any]:
        must = f"{self.sign} {self.limit:g}"
        return {"what": self.what, "measured": self.measured, "must": must, "pass": self.holds}


def judge(document: dict[str, Any], verdicts: Sequence[Verdict]) -> int:
    """Print a JSON line per verdict, and `document` with all of them as the last line. Returns the command's exit code."""
    lines = [verdict.line() for verdict in verdicts]
    for line in lines:
        print(json.dumps(line))
    print(json.dumps({**document, "verdicts": lines}))
    return 0 if all(verdict.holds for verdict in verdicts) else 1
