"""The figures of a row's runs."""

from math import comb

import numpy as np
import pytest

from benchmarks.ratios import least_runs, median_interval, ratio, start_ms


def exact_ends(values, level=0.95):
    """The bootstrap's interval without drawing: the median of n resampled values is at most the k-th smallest if more than
    half of n draws are, each with the probability k/n."""
    count, ordered = len(values), sorted(values)
    most = [
        sum(
            comb(count, hits) * (k / count) ** hits * (1 - k / count) ** (count - hits)
            for hits in range(count // 2 + 1, count + 1)
        )
        for k in range(1, count + 1)
    ]
    return [
        ordered[next(k for k, share in enumerate(most) if share >= end)] for end in ((1 - level) / 2, (1 + level) / 2)
    ]


@pytest.mark.parametrize("count", [3, 5, 9])
def test_the_interval_is_the_bootstraps_own(count):
    values = np.random.default_rng(count).uniform(1, 2, count).tolist()
    interval = median_interval(values)
    assert interval.median == np.median(values)
    assert [interval.low, interval.high] == exact_ends(values)


def test_three_ratios_give_their_extremes_and_nine_do_not():
    assert str(median_interval([1.2, 1.1, 1.4])) == "1.20 (1.10–1.40)"
    nine = [1.0 + i / 10 for i in range(9)]
    assert (median_interval(nine).low, median_interval(nine).high) == (nine[1], nine[7])


def test_the_interval_is_reproducible_and_blind_to_order():
    values = [1.18, 1.17, 1.21, 1.16, 1.19, 1.3, 1.18, 1.2, 1.18]
    assert median_interval(values) == median_interval(values)
    assert median_interval([2.0] * 9) == median_interval([2.0] * 3)


def test_a_percentile_needs_a_run_beyond_it():
    assert [least_runs(percentile) for percentile in (50, 90, 95, 99)] == [2, 10, 20, 100]


def test_ratios_are_of_pairs_and_starts_of_loads():
    loads = {
        "cold": [],
        "warm": [{"load": 1.0, "first": 2.0}, {"load": 5.0, "first": 2.0}, {"load": 2.0, "first": 2.0}],
    }
    row = {
        "times_ms": {"theirs": [2.0, 6.0, 6.0], "ours": [1.0, 2.0, 3.0]},
        "loads_ms": {"theirs": loads, "ours": loads},
    }
    assert ratio(row).median == 2.0  # of 2, 3 and 2, while the medians' ratio is 3
    assert (start_ms(row, "theirs", "warm"), start_ms(row, "theirs", "cold")) == (4.0, None)
