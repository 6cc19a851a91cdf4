"""Is the machine steady? Its best convolution before and after a row, beside the best that this kind of CPU ever gave.

Hosts of one kind were 2.2 times apart on two days. A ratio of two programs stands that better than a time does, but not
every layer slows down alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from benchmarks import ceiling
from sdturbo import backends
from sdturbo.backends import BackendChoice

MOVED = 0.10  # of the ceiling before the row
LEAST_SHARE = 0.85  # of the best ceiling
DRAWS = 3  # of a row, at most

Json = Mapping[str, Any]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Operations per second of the best convolution, before and after a row."""

    before: float
    after: float

    def fault(self, best: float) -> str | None:
        """The reason why the machine was not steady, in words, or None. best: of this kind of CPU."""
        moved = self.after / self.before - 1
        if abs(moved) > MOVED:
            return f"the ceiling moved by {100 * moved:+.0f} %"
        share = self.lowest / best
        return f"the ceiling was at {100 * share:.0f} % of this CPU's best" if share < LEAST_SHARE else None

    @property
    def lowest(self) -> float:
        return min(self.before, self.after)


def draw_steadily(draw: Callable[[], Row], rate: Callable[[], float], best: float) -> tuple[Row, dict[str, Any]]:
    """`draw()` until the machine was steady, at most DRAWS times: the draw, and the ceilings of all.

    rate: measures the ceiling. best: the best ceiling so far. The draw that is kept is the steady one, or else the one
    whose lower ceiling was highest. Its ratio has no say.
    """
    drawn: list[tuple[Row, Ceilings]] = []
    for _ in range(DRAWS):
        before = rate()
        row = draw()
        drawn.append((row, Ceilings(before, rate())))
        best = max(best, before, drawn[-1][1].after)
        if drawn[-1][1].fault(best) is None:
            break
    if drawn[-1][1].fault(best) is not None:
        drawn.sort(key=lambda pair: pair[1].lowest)
    row, kept = drawn[-1]
    return row, {**asdict(kept), "best": best, "draws": [asdict(each) for _, each in drawn]}


def fault(row: Json, best: float) -> str | None:
    """The fault of a stored row. Rows of before 2026-11-26 have no ceilings. best: see `best_of`."""
    if "ceiling" not in row:
        return "the machine's steadiness was not measured"
    return Ceilings(row["ceiling"]["before"], row["ceiling"]["after"]).fault(max(best, row["ceiling"]["best"]))


def best_of(documents: Iterable[Json], cpu: Json, threads: int, precision: str) -> float:
    """The best ceiling in stored runs of this kind of CPU with as many threads, 0 if there is none."""
    rates = [0.0]
    for document in documents:
        if document["machine"]["cpu"] != cpu or document["settings"].get("threads") != threads:
            continue
        for row in document["rows"]:
            if row["key"].get("ceiling") == precision and "error" not in row:
                rates.append(row["conv"])
            if "ceiling" in row and document["settings"]["ceiling"] == precision:
                rates += [rate for each in row["ceiling"]["draws"] for rate in (each["before"], each["after"])]
    return max(rates)


def precision_here() -> str:
    """The precision of the ceiling: bf16 where OpenVINO computes in it, else fp32."""
    offer = backends.offer_for(BackendChoice("openvino", precision="bf16"))
    return "bf16" if offer.runs else "fp32"


def best_convolution(precision: str, threads: int) -> float:
    """Operations per second of the best convolution now. Takes about ten seconds."""
    return ceiling.best_convolution(precision, threads, seconds=1.0)
