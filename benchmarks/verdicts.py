"""What must hold of a run under load: each figure with its limit, and the end that every such command comes to."""

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
    """Print a JSON line for each verdict, and `document` with all of them as the last. Returns the command's exit code."""
    lines = [one.line() for one in verdicts]
    for line in lines:
        print(json.dumps(line))
    print(json.dumps({**document, "verdicts": lines}))
    return 0 if all(one.holds for one in verdicts) else 1
