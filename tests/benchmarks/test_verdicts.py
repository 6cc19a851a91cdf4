"""How the commands that load a server end."""

import json
import math

import pytest

from benchmarks.serve_load import verdicts
from benchmarks.verdicts import Verdict, judge


@pytest.mark.parametrize(
    ("measured", "sign", "holds"),
    [
        (1, "<=", True),
        (1.01, "<=", False),
        (1, ">=", True),
        (0.99, ">=", False),
        (math.nan, "<=", False),
        (math.nan, ">=", False),
    ],
)
def test_a_limit_itself_holds_and_what_is_no_number_does_not(measured, sign, holds):
    assert Verdict("x", measured, sign, 1).holds == holds


def test_the_last_line_is_the_document_and_one_failure_fails_the_command(capsys):
    good, bad = Verdict("good", 0, "<=", 0), Verdict("bad", 3, "<=", 2)
    assert judge({"a": 1}, [good]) == 0
    assert judge({"a": 1}, [good, bad]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == lines[4]["verdicts"]
    assert lines[3] == {"what": "bad", "measured": 3, "must": "<= 2", "pass": False}
    assert lines[4]["a"] == 1


def test_a_lost_or_wrong_answer_or_another_exit_status_fails_a_load():
    def report(answers, exit_status=0):
        return {
            "overhead": {"beyond_engine_p50_ms": 3.0, "encode_p50_ms": 2.0, "bare_p50_ms": 60.0},
            "throughput": {"ratio": 0.99},
            "typing": {"pictures_per_second": 9.0},
            "overload": {"answers": {"right picture": 9, **answers}, "memory_growth_percent": 0.1},
            "drain": {"answers": {200: 8}, "exit_status": exit_status, "seconds": 2.0},
        }

    assert all(one.holds for one in verdicts(report({"429": 7, "504": 2})))
    for answers in ({"wrong picture": 1}, {"lost: ReadError": 1}, {"500": 1}):
        assert not all(one.holds for one in verdicts(report(answers)))
    assert not all(one.holds for one in verdicts(report({}, exit_status=-15)))
