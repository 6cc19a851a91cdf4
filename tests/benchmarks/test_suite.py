import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import charts, measure, results, suite
from benchmarks.measure import Configuration
from benchmarks.results import Results, name_of
from benchmarks.tables import document_tables
from sdturbo.bundle import Bundle
from sdturbo.cpu import available_cpus
from sdturbo.errors import BackendUnavailable, InvalidRequest

ROOT = Path(__file__).parents[2]
CPUS = available_cpus()


@pytest.fixture
def bundle_of_two(make_bundle):
    return make_bundle((1, 2))


@pytest.fixture
def null_only(monkeypatch):
    """The null backend alone, under its own name: a suite of fractions of a second."""
    monkeypatch.setattr(suite, "engines", lambda bundle: [("null", "none")])


def test_every_configuration_is_measured_and_stored(bundle_of_two, null_only, tmp_path):
    document = suite.run(bundle_of_two, tmp_path, [1], runs=2)
    keys = [(row["key"]["batch_size"], row["key"]["steps"]) for row in document["rows"]]
    assert keys == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
    assert [row["runs"] for row in document["rows"]] == [2] * 5
    assert document["rows"][4]["batch_size"] == 2
    assert json.loads((tmp_path / "bench-fake.json").read_text()) == document
    assert document["machine"]["cpu"]["count"] == CPUS
    assert document["finished"] >= document["started"]


def test_an_interrupted_run_keeps_its_rows(bundle_of_two, null_only, tmp_path, monkeypatch):
    real, measured = measure.run, []

    def stop_at_third(bundle, configuration, runs, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(configuration)
        return real(bundle, configuration, runs, **options)

    monkeypatch.setattr(measure, "run", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        suite.run(bundle_of_two, tmp_path, [1], runs=1)
    assert not (tmp_path / "bench-fake.json").exists()
    kept = json.loads((tmp_path / "bench-fake.partial.json").read_text())["rows"]
    assert len(kept) == 2
    monkeypatch.setattr(measure, "run", lambda *_, **__: {"error": "measured again"})
    document = suite.run(bundle_of_two, tmp_path, [1], runs=1)
    assert document["rows"][:2] == kept
    assert [row["error"] for row in document["rows"][2:]] == ["measured again"] * 3
    assert not (tmp_path / "bench-fake.partial.json").exists()


def test_rows_of_other_settings_are_not_taken_over(tmp_path, monkeypatch):
    Results(tmp_path, "bench", "fake", {"runs": 1}).add({"threads": 1}, {"median": 5})
    assert Results(tmp_path, "bench", "fake", {"runs": 1}).resumed
    monkeypatch.setattr(results, "machine", lambda real=results.machine: {**real(), "platform": "a new kernel"})
    assert Results(tmp_path, "bench", "fake", {"runs": 1}).resumed
    assert not Results(tmp_path, "bench", "fake", {"runs": 2}).resumed
    monkeypatch.setattr(results, "machine", lambda real=results.machine: {**real(), "packages": {}})
    assert not Results(tmp_path, "bench", "fake", {"runs": 1}).resumed


def test_a_finished_run_is_gone_on_with_where_that_is_asked(tmp_path):
    rows = Results(tmp_path, "peers", "fake", {})
    for name in ("a", "b"):
        rows.add({"row": name}, {"figure": 1})
    finished = rows.finish()
    assert not Results(tmp_path, "peers", "fake", {}).resumed
    again = Results(tmp_path, "peers", "fake", {}, reopen=True)
    assert (again.document, again.unfinished) == (finished, False)
    again.add({"row": "a"}, {"figure": 2})
    assert [row["figure"] for row in again.document["rows"]] == [2, 1]
    assert ("finished" in again.document, again.unfinished) == (False, True)


def test_unfinished_rows_of_another_machine_are_not_overwritten(tmp_path, monkeypatch):
    Results(tmp_path, "peers", "fake", {}, reopen=True).add({"row": "a"}, {"figure": 1})
    monkeypatch.setattr(results, "machine", lambda real=results.machine: {**real(), "cpu": {"name": "another"}})
    with pytest.raises(InvalidRequest, match=r"peers-fake.partial.json holds rows of another machine"):
        Results(tmp_path, "peers", "fake", {}, reopen=True)


def test_other_precisions_of_a_model_are_stored_beside_it(bundle_dir):
    bundle = Bundle.load(bundle_dir)
    assert name_of(bundle) == "fake"
    assert name_of(dataclasses.replace(bundle, precision="int8")) == "fake-int8"


def test_a_row_that_failed_is_tried_again(tmp_path):
    rows = Results(tmp_path, "bench", "fake", {})
    rows.add({"threads": 1}, {"error": "no"})
    assert rows.find({"threads": 1}) is None
    rows.add({"threads": 1}, {"median": 5})
    assert rows.find({"threads": 1}) == {"key": {"threads": 1}, "median": 5}
    assert len(rows.document["rows"]) == 1


def test_more_threads_than_cores_are_refused(bundle_dir):
    command = [sys.executable, "-m", "benchmarks.suite", "--bundle", str(bundle_dir), "--threads", str(CPUS + 1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == InvalidRequest.exit_code
    assert f"expected 1 to {CPUS}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_measurement_that_fails_is_a_row_that_says_why(bundle_dir):
    row = measure.run(bundle_dir, Configuration("null", "none", 1, batch_size=3), 1)
    assert "Got batch size 3. The bundle has 1" in row["error"]
    assert "this machine has" in measure.run(bundle_dir, Configuration("null", "none", CPUS + 1), 1)["error"]


def test_peak_memory_is_that_of_the_measured_process(bundle_dir):
    ballast = bytearray(600_000_000)
    row = measure.run(bundle_dir, Configuration("null", "none", 1), 1)
    assert 0 < row["peak_memory_mb"] < len(ballast) / 1e6
    assert 0 < row["anonymous_memory_mb"] <= row["peak_memory_mb"]


def test_loads_are_measured_cold_and_warm_with_a_cache_of_their_own(bundle_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "users"))
    row = measure.run(bundle_dir, Configuration("openvino", "fp32", 1), 1, cold_first=True)
    assert row["load_ms"] > 0
    assert row["cold_load_ms"] > 0
    assert not (tmp_path / "users").exists()
    assert not list((ROOT / "build").glob("cache-*"))


def test_engines_are_those_that_run_here(bundle_dir, monkeypatch):
    assert ("onnxruntime", "fp32") in suite.engines(Bundle.load(bundle_dir))
    assert "null" not in dict(suite.engines(Bundle.load(bundle_dir)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match=r"(?s)tensorrt is not installed.*onnxruntime is not installed"):
        suite.engines(Bundle.load(bundle_dir))


def test_tables_show_figures_and_failures(bundle_of_two, null_only, tmp_path):
    document = suite.run(bundle_of_two, tmp_path, [1], runs=1)
    document["rows"][4] = {"key": document["rows"][4]["key"], "error": "out of memory | killed"}
    text = document_tables(document)
    median = document["rows"][0]["parts_ms"]["total"]["median"]
    (line,) = (line for line in text.splitlines() if line.startswith("| null none") and line.count("|") == 12)
    assert float(line.split("|")[2]) == pytest.approx(median, rel=0.06)
    assert "null none: out of memory / killed" in text


def test_a_percentile_is_shown_where_the_runs_give_one(bundle_of_two, null_only, tmp_path):
    document = suite.run(bundle_of_two, tmp_path, [1], runs=1)
    shown = ["| p95 |" in " ".join(document_tables({**document, "settings": {**document["settings"], "runs": runs}}).split())
             for runs in (1, 19, 20)]  # fmt: skip
    assert shown == [False, False, True]


def test_charts_are_pictures(bundle_of_two, null_only, tmp_path):
    drawn = charts.draw(suite.run(bundle_of_two, tmp_path, [1], runs=1), tmp_path)
    assert [path.name for path in drawn] == ["bench-fake-stages.png", "bench-fake-scaling.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in drawn)
