"""A row is drawn again while the machine is not steady, and marked if it never was."""

import itertools

import pytest

from benchmarks import steadiness
from benchmarks.steadiness import DRAWS, Ceilings, best_of, draw_steadily, fault

CPU = {"name": "fast", "count": 2, "features": ["avx2"]}


@pytest.mark.parametrize(
    ("before", "after", "best", "words"),
    [
        (100, 100, 100, None),
        (100, 91, 100, None),
        (100, 109, 109, None),
        (100, 89, 100, "the ceiling moved by -11 %"),
        (90, 100, 100, "the ceiling moved by +11 %"),
        (86, 86, 100, None),
        (84, 86, 100, "the ceiling was at 84 % of this CPU's best"),
        (86, 84, 100, "the ceiling was at 84 % of this CPU's best"),
    ],
)
def test_a_row_is_steady_within_both_limits(before, after, best, words):
    assert Ceilings(before, after).fault(best) == words


def drawn(rates, best=100.0):
    """(the kept draw's number, its ceilings, the number of draws)."""
    numbers = itertools.count()
    rates = iter(rates)
    row, ceiling = draw_steadily(lambda: next(numbers), lambda: next(rates), best)
    return row, (ceiling["before"], ceiling["after"]), len(ceiling["draws"])


def test_a_steady_row_is_drawn_once():
    assert drawn([99, 98]) == (0, (99, 98), 1)


def test_a_row_is_drawn_again_until_the_machine_is_steady():
    assert drawn([100, 70, 99, 97]) == (1, (99, 97), 2)


def test_the_draws_are_bounded_and_the_least_disturbed_is_kept():
    assert drawn([100, 50, 60, 80, 100, 55]) == (1, (60, 80), DRAWS)


def test_a_better_ceiling_of_the_row_itself_counts():
    assert drawn([80, 80, 100, 100], best=0.0) == (0, (80, 80), 1)
    _, ceiling = draw_steadily(lambda: 0, iter([80, 120, 80, 80, 80, 80]).__next__, 0.0)
    assert (ceiling["best"], len(ceiling["draws"])) == (120, DRAWS)
    assert fault({"ceiling": ceiling}, 0.0) is not None


def test_a_stored_row_is_judged_by_the_best_of_now():
    row = {"ceiling": {"before": 90, "after": 90, "best": 100}}
    assert fault(row, 0.0) is None
    assert fault(row, 120.0) == "the ceiling was at 75 % of this CPU's best"
    assert fault({}, 0.0) == "the machine's steadiness was not measured"


def document(rows, cpu=CPU, threads=2, **settings):
    return {"machine": {"cpu": cpu}, "settings": {"threads": threads, **settings}, "rows": rows}


def test_the_best_ceiling_is_of_the_same_kind_of_cpu_threads_and_precision():
    roofline = [
        {"key": {"ceiling": "bf16"}, "conv": 100.0, "matmul": 900.0},
        {"key": {"ceiling": "fp32"}, "conv": 500.0},
    ]
    failed = {"key": {"ceiling": "bf16"}, "error": "no"}
    peers = [
        {"key": {"row": "a"}, "ceiling": {"draws": [{"before": 70.0, "after": 110.0}]}},
        {"key": {"row": "b"}, "error": "x"},
    ]
    documents = [
        document([*roofline, failed]),
        document(peers, ceiling="bf16"),
        document(peers, ceiling="fp32"),
        document([{"key": {"ceiling": "bf16"}, "conv": 200.0}], cpu={**CPU, "name": "slow"}),
        document([{"key": {"ceiling": "bf16"}, "conv": 300.0}], threads=1),
        document([{"key": {"backend": "openvino"}, "parts_ms": {}}], threads=[1, 2]),
    ]
    assert best_of(documents, CPU, 2, "bf16") == 110.0
    assert best_of(documents, CPU, 2, "fp32") == 500.0
    assert best_of(documents, {**CPU, "count": 4}, 2, "bf16") == 0.0


def test_the_ceiling_is_the_best_convolution(monkeypatch):
    rates = {64: 3.0, 128: 5.0, 256: 4.0, 512: 1.0}
    monkeypatch.setattr(
        "benchmarks.ceiling.rate", lambda model, stage, backend, seconds: rates[stage.inputs[0].shape[-1]]
    )
    monkeypatch.setattr("benchmarks.ceiling._backends", lambda precision, threads: iter(["backend"]))
    assert steadiness.best_convolution("fp32", 1) == 5.0
