import ast
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.peers import environments
from benchmarks.peers.conversation import FOLDER, Worker
from benchmarks.peers.environments import PEERS, Environment, PeerSpec, PeerUnavailable, python_of
from benchmarks.tables import document_tables
from sdturbo.bundle import Bundle
from sdturbo.errors import InvalidRequest

FAKE = str(Path(__file__).with_name("fake_worker.py"))
NO_ENVIRONMENT = Environment("none", ())


def peer(behaviour, **options):
    return PeerSpec(f"fake that {behaviour}", NO_ENVIRONMENT, FAKE, (behaviour,), **options)


@pytest.fixture
def here(monkeypatch):
    """Peers run with this interpreter; our engine is the null backend."""
    monkeypatch.setattr(compare, "python_of", lambda *_: sys.executable)
    monkeypatch.setattr(compare, "engines", lambda bundle: [("null", "none")])
    monkeypatch.setattr(compare, "REFERENCE", peer("draws"))


def run(bundle_dir, tmp_path, *peers):
    return compare.run(bundle_dir, tmp_path, tmp_path, tmp_path / "peers", peers, threads=1, steps=1, runs=3)


def test_pairs_are_drawn_in_turn_and_a_failed_peer_is_a_row(bundle_dir, tmp_path, here):
    document = run(bundle_dir, tmp_path, peer("draws", converts=True), peer("refuses"), peer("dies"))
    good, refused, died = document["rows"]
    assert len(good["ratios"]) == 3
    pairs = zip(good["times_ms"]["peer"], good["times_ms"]["ours"], strict=True)
    assert good["ratios"] == [theirs / ours for theirs, ours in pairs]
    assert min(good["times_ms"]["peer"]) >= 10
    assert (good["psnr"], good["our_psnr"] < 100) == (100.0, True)
    assert good["prepare_ms"] > 0
    again = compare.converted(
        peer("draws", converts=True),
        sys.executable,
        {"checkpoint_id": compare.checkpoint_id(Bundle.load(bundle_dir))},
        tmp_path / "peers",
    )
    assert again[1] == good["prepare_ms"]  # of the one conversion
    assert refused["error"] == "load failed: KeyError: 'no such weight'"
    assert died["error"].startswith("its process ended at `load` with status 3")
    text = document_tables(document)
    assert "fake that refuses / null none: load failed" in text
    assert f"{good['ratio']:.2f} (" in text


def test_a_peer_that_hangs_is_ended():
    with Worker(sys.executable, FAKE, ["sleeps"], 1) as worker:
        worker.ask("load")
        with pytest.raises(PeerUnavailable, match="ended at `draw`"):
            worker.ask("draw", prompt="", seed=0, steps=1, timeout=0.5)


def test_what_libraries_print_is_no_answer(tmp_path):
    with Worker(sys.executable, FAKE, ["draws"], 1, tmp_path / "log") as worker:
        assert worker.ask("load")["ms"] > 0
    assert "noise of a library" in (tmp_path / "log").read_text()
    assert "noise of another process" in (tmp_path / "log").read_text()


def test_a_peer_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    real, failing = environments._run, "import sys; sys.exit('ERROR: No matching distribution')"

    def offline(command):
        if "pip" in command:
            real([sys.executable, "-c", failing])

    monkeypatch.setattr(environments, "_run", offline)
    with pytest.raises(PeerUnavailable, match=r"cannot be installed: .*No matching distribution"):
        python_of(Environment("missing", ("no-such-peer==1",)), tmp_path)
    with pytest.raises(PeerUnavailable):  # what was half built is not taken for whole
        python_of(Environment("missing", ("no-such-peer==1",)), tmp_path)


def test_an_environment_is_built_once_for_its_pins(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        environments, "_run", lambda command: (commands.append(command), (tmp_path / "e").mkdir(exist_ok=True))
    )
    python_of(Environment("e", ("a==1",), remove=("b",)), tmp_path)
    assert len(commands) == 3
    python_of(Environment("e", ("a==1",), remove=("b",)), tmp_path)
    assert len(commands) == 3
    python_of(Environment("e", ("a==2",)), tmp_path)
    assert "a==2" in commands[-1]


def test_every_requirement_is_pinned():
    pins = [pin for one in PEERS for pin in one.environment.pins]
    assert [pin for pin in pins if "==" not in pin] == []


def test_our_fastest_engine_meets_every_peer_and_onnxruntime_meets_optimum():
    made = compare.pairs([("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32")], PEERS)
    assert [(one.name, engine) for one, engine in made[-1:]] == [("optimum-onnx", ("onnxruntime", "fp32"))]
    assert [engine for _, engine in made[:-1]] == [("openvino", "bf16")] * len(PEERS)


def test_workers_import_nothing_of_ours_but_their_lines():
    for path in FOLDER.glob("*_worker.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert path.name == "sdturbo_worker.py" or not {
            n for n in names if n and n.split(".")[0] in ("sdturbo", "benchmarks")
        }


def test_threads_over_the_cores_are_refused(bundle_dir, tmp_path, here):
    with pytest.raises(InvalidRequest, match="This machine has"):
        compare.run(bundle_dir, tmp_path, tmp_path, tmp_path, [], threads=4096, steps=1, runs=1)
