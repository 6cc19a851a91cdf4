"""Figures of a row's runs: the median ratio with its 95 % interval, starts, and the runs that a percentile needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the interval that holds it with a probability of LEVEL."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def median_interval(ratios: Sequence[float]) -> Interval:
    """The median of `ratios` and its bootstrap interval, by percentiles of the medians of RESAMPLES resamples.

    The resamples are seeded: the same ratios give the same interval. Three ratios give their smallest and largest.
    """
    values = np.asarray(ratios, np.float64)
    drawn = np.random.default_rng(SEED).choice(values, (RESAMPLES, len(values)))
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(np.median(drawn, axis=1), ends, method="inverted_cdf")
    return Interval(float(np.median(values)), float(low), float(high))


def ratio(row: Mapping[str, Any]) -> Interval:
    """Their time divided by ours, over the pairs of a stored row."""
    times = row["times_ms"]
    return median_interval([theirs / ours for theirs, ours in zip(times["theirs"], times["ours"], strict=True)])


def start_ms(row: Mapping[str, Any], side: str, kind: Literal["cold", "warm"]) -> float | None:
    """Median milliseconds of a side's load and first picture, None if a stored row has no such load."""
    loads = row["loads_ms"][side][kind]
    return median([load["load"] + load["first"] for load in loads]) if loads else None


def least_runs(percentile: int) -> int:
    """The number of runs from which on a run lies beyond the percentile: 20 for the 95th."""
    return -(-100 // (100 - percentile))
