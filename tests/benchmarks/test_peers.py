import ast
import dataclasses
import sys
from pathlib import Path

import pytest

from benchmarks import compare, in_turn, steadiness
from benchmarks.pairs import PAIRS, Pair
from benchmarks.peers import conversions, environments
from benchmarks.peers.conversation import FOLDER, Worker
from benchmarks.peers.conversions import Conversion, converted
from benchmarks.peers.environments import Environment, PeerUnavailable, Repository, python_of, source_of
from benchmarks.peers.forms import Form
from benchmarks.tables import document_tables
from sdturbo.errors import InvalidRequest

FAKE = str(Path(__file__).with_name("fake_worker.py"))
NO_ENVIRONMENT = Environment("none", ())
BUNDLE = Conversion("bundle", FAKE, ("converts",))


def peer(behaviour, decoder="KL"):
    name = f"fake that {behaviour}"
    return Form(name, "none", "fp32", decoder, FAKE, (behaviour,), NO_ENVIRONMENT, BUNDLE)


OURS = Form("ours", "none", "fp32", "KL", FAKE, ("draws",), None, BUNDLE)
OUR_NULL_BACKEND = Form("sdturbo", "backend null", "fp32", "KL", "sdturbo_worker.py", ("null", "none"), None, BUNDLE)


@pytest.fixture
def here(monkeypatch):
    """Peers run with this interpreter, the reference is a fake, and the machine is steady."""
    for module in (compare, in_turn, conversions):
        monkeypatch.setattr(module, "python_of", lambda *_: sys.executable)
    monkeypatch.setattr(conversions, "_exporter_sources", dict)
    monkeypatch.setattr(compare, "REFERENCE", peer("draws"))
    monkeypatch.setattr(steadiness, "best_convolution", lambda precision, threads: 1e12)


@pytest.fixture
def request_of(bundle_dir, tmp_path):
    return {
        "name": "fake",
        "model_name": "fake",
        "checkpoint": str(bundle_dir),
        "checkpoint_id": "weights",
        "decoder": "small-taesd",
        "decoder_id": "taesd",
        "prompts": ["a"],
        "workspace": str(tmp_path),
        "threads": 1,
        "steps": 1,
    }


@pytest.fixture
def suite(request_of, tmp_path, here, monkeypatch):
    """suite(*pairs) measures what is missing of them, suite(*pairs, again=[names]) these again."""

    def run(*pairs, again=()):
        monkeypatch.setattr(compare, "PAIRS", pairs)
        asked = [pair for pair in pairs if pair.name in again] if again else pairs
        rows = compare.stored(request_of, tmp_path / "results")
        return compare.run(asked, request_of, rows, tmp_path / "peers", again=bool(again))

    return run


def pair(name, theirs, ours=OURS, **options):
    return Pair(name, theirs, ours, **{"runs": 1, "loads": 1, **options})


def test_pairs_are_drawn_in_turn_and_a_failed_peer_is_a_row(suite):
    good = pair("good", peer("draws"), OUR_NULL_BACKEND, runs=3)
    document = suite(good, pair("refused", peer("refuses")), pair("died", peer("dies")))
    good, refused, died = document["rows"]
    assert {side: len(times) for side, times in good["times_ms"].items()} == {"theirs": 3, "ours": 3}
    assert min(good["times_ms"]["theirs"]) >= 10
    assert (good["psnr_db"]["theirs"], good["psnr_db"]["ours"] < 100) == (100.0, True)
    assert good["theirs"] == {"program": "fake that draws", "settings": "none", "precision": "fp32", "decoder": "KL"}
    assert all(0 < figures["anonymous"] <= figures["peak"] for figures in good["memory_mb"].values())
    assert good["conversion_ms"]["theirs"] > 0
    assert refused["error"] == "load failed: KeyError: 'no such weight'"
    assert died["error"].startswith("its process ended at `load` with status 3")
    text = document_tables(document)
    assert "fake that refuses (`refused`): load failed" in text
    assert "fake that draws (`good`)" in text


def test_every_row_loads_once_cold_and_then_warm(suite, tmp_path):
    (row,) = suite(pair("one", peer("draws"), loads=3))["rows"]
    assert {side: (len(loads["cold"]), len(loads["warm"])) for side, loads in row["loads_ms"].items()} == {
        "theirs": (1, 3),
        "ours": (1, 3),
    }
    loads = tmp_path / "peers" / "cache" / "theirs" / "loads"
    assert len(loads.read_text().splitlines()) == 4
    suite(pair("one", peer("draws"), loads=3), again=["one"])
    assert len(loads.read_text().splitlines()) == 4  # the cache was emptied first


def test_only_a_form_with_the_tiny_decoder_is_given_one(suite, tmp_path):
    loads = tmp_path / "peers" / "cache" / "theirs" / "loads"
    for decoder, given in (("KL", "None"), ("tiny", "small-taesd")):
        suite(pair(decoder, peer("draws", decoder), peer("draws", decoder)))
        assert {line.split()[1] for line in loads.read_text().splitlines()} == {given}
    references = {path.name for path in (tmp_path / "peers").glob("reference-*.png")}
    assert references == {"reference-weights-1.png", "reference-weights-taesd-1.png"}


def test_a_second_call_goes_on_where_the_first_stopped(suite, tmp_path, monkeypatch):
    pairs = [pair(name, peer("draws")) for name in ("a", "b", "c")]
    real, drawn = compare.draw_pair, []

    def interrupted(one, *rest):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(one.name)
        return real(one, *rest)

    monkeypatch.setattr(compare, "draw_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite(*pairs)
    partial, path = tmp_path / "results/peers-fake.partial.json", tmp_path / "results/peers-fake.json"
    assert (partial.exists(), path.exists()) == (True, False)
    monkeypatch.setattr(compare, "draw_pair", lambda one, *rest: (drawn.append(one.name), real(one, *rest))[1])
    document = suite(*pairs)
    assert drawn == ["a", "b", "c"]
    assert [row["key"]["row"] for row in document["rows"]] == drawn
    assert (partial.exists(), path.exists()) == (False, True)
    assert suite(*pairs) == document  # a third call measures nothing
    assert drawn == ["a", "b", "c"]


def test_a_row_is_measured_again_by_its_name_alone(suite, tmp_path):
    pairs = [pair(name, peer("draws")) for name in ("a", "b")]
    before = suite(*pairs)["rows"]
    after = suite(*pairs, again=["a"])["rows"]
    assert [row["key"]["row"] for row in after] == ["a", "b"]
    assert after[0]["times_ms"] != before[0]["times_ms"]
    assert after[1] == before[1]
    assert (tmp_path / "results/peers-fake.json").exists()


def test_a_lone_row_does_not_finish_the_run(suite, tmp_path):
    pairs = [pair(name, peer("draws")) for name in ("a", "b")]
    assert "finished" not in suite(*pairs, again=["b"])
    assert "finished" in suite(*pairs)


def test_a_peer_that_failed_is_tried_again(suite, monkeypatch):
    failing = pair("a", peer("refuses"))
    assert "error" in suite(failing)["rows"][0]
    assert "error" not in suite(pair("a", peer("draws")))["rows"][0]


def test_an_unsteady_machine_marks_its_row(suite, monkeypatch):
    rates = iter([1e12, 5e11] * steadiness.DRAWS)
    monkeypatch.setattr(steadiness, "best_convolution", lambda *_: next(rates))
    (row,) = (document := suite(pair("a", peer("draws"))))["rows"]
    assert len(row["ceiling"]["draws"]) == steadiness.DRAWS
    assert "\\* the ceiling moved by -50 %: `a`." in document_tables(document)


def test_the_list_shows_every_row(suite, request_of, tmp_path):
    pairs = pair("a", peer("draws"), asked=2.0), pair("b", peer("refuses")), pair("c", peer("draws"))
    suite(*pairs, again=["a", "b"])
    text = compare.listing(compare.stored(request_of, tmp_path / "results"))
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()[2:]]
    assert [line[1:5] for line in cells] == [
        ["a", "fake that draws, KL, fp32", "ours, KL, fp32", ">= 2"],
        ["b", "fake that refuses, KL, fp32", "ours, KL, fp32", "–"],
        ["c", "fake that draws, KL, fp32", "ours, KL, fp32", "–"],
    ]
    assert cells[1][5].startswith("failed: load failed")
    assert cells[2][5] == "missing"


def test_unknown_rows_are_refused():
    from benchmarks.pairs import named

    assert [each.name for each in named(["genai-bf16"])] == ["genai-bf16"]
    with pytest.raises(InvalidRequest, match=r"Got rows genie. Expected some of genai-bf16"):
        named(["genie"])


def test_a_conversion_is_made_once_for_its_weights_and_tool(request_of, tmp_path, here):
    base = Conversion("base", FAKE, ("converts",))
    tiny = Conversion("tiny", FAKE, ("converts",), base=base, decoder=True)
    first = converted(tiny, request_of, tmp_path)
    assert (first.path / "bundle.json").is_file()
    assert first.ms > converted(base, request_of, tmp_path).ms  # its base is part of the work
    assert converted(tiny, request_of, tmp_path) == first
    other = converted(tiny, {**request_of, "decoder_id": "another"}, tmp_path)
    assert other.key != first.key
    assert not first.path.exists()  # an old one would fill the disk
    assert converted(base, {**request_of, "decoder_id": "another"}, tmp_path).path.exists()
    assert converted(base, {**request_of, "checkpoint_id": "other"}, tmp_path).key != other.key


def test_a_bundle_follows_the_exporters_sources(request_of, monkeypatch):
    sources = conversions._exporter_sources()
    assert sources.keys() >= {
        f"sdturbo_export.{name}" for name in ("stages", "rewrites.upsample", "int8.qdq", "publish.optimum")
    }
    key = conversions._key(conversions.BUNDLE, request_of, None)
    monkeypatch.setattr(conversions, "_exporter_sources", lambda: {**sources, "sdturbo_export.stages": "changed"})
    assert conversions._key(conversions.BUNDLE, request_of, None) != key


def test_a_failed_conversion_leaves_nothing(request_of, tmp_path, here):
    broken = Conversion("broken", FAKE, ("converts",), NO_ENVIRONMENT)
    with pytest.raises(PeerUnavailable, match="prepare failed"):
        converted(broken, {**request_of, "checkpoint": str(tmp_path / "nowhere")}, tmp_path)
    assert not list((tmp_path / "models").iterdir())


def test_a_conversion_that_was_stopped_is_made_anew(request_of, tmp_path, here):
    whole = converted(BUNDLE, request_of, tmp_path)
    whole.path.with_name(f"{whole.path.name}.json").unlink()
    (whole.path / "bundle.json").unlink()
    assert (converted(BUNDLE, request_of, tmp_path).path / "bundle.json").is_file()


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

    def offline(command, variables=None):
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
        environments,
        "_run",
        lambda command, variables=None: (commands.append(command), (tmp_path / "e").mkdir(exist_ok=True)),
    )
    python_of(Environment("e", ("a==1",), remove=("b",)), tmp_path)
    assert len(commands) == 3
    python_of(Environment("e", ("a==1",), remove=("b",)), tmp_path)
    assert len(commands) == 3
    python_of(Environment("e", ("a==2",)), tmp_path)
    assert "a==2" in commands[-1]
    python_of(Environment("e", ("a==2",), variables={"CMAKE_ARGS": "-DX=ON"}), tmp_path)
    assert len(commands) == 7


def test_a_repository_is_cloned_once_at_its_commit(tmp_path):
    origin = tmp_path / "origin"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(origin)]
    environments._run(["git", "init", "--quiet", str(origin)])
    for text in ("old", "new"):
        (origin / "file").write_text(text)
        environments._run([*git, "add", "file"])
        environments._run([*git, "commit", "--quiet", "-m", text])
    commit = (origin / ".git" / "refs" / "heads").iterdir().__next__().read_text().strip()
    program = Repository("program", str(origin), f"{commit}~1")
    assert (source_of(program, tmp_path) / "file").read_text() == "old"
    origin.rename(tmp_path / "gone")
    assert (source_of(program, tmp_path) / "file").read_text() == "old"
    with pytest.raises(PeerUnavailable, match="cannot be installed: fatal"):
        source_of(Repository("program", str(origin), commit), tmp_path)


def test_every_requirement_is_pinned():
    forms = [form for each in PAIRS for form in (each.theirs, each.ours)]
    used = {id(form.environment): form.environment for form in forms if form.environment}
    assert len(used) > 3
    assert [pin for environment in used.values() for pin in environment.pins if "==" not in pin] == []


def test_workers_import_nothing_of_ours_but_their_lines():
    scripts = [path for pattern in ("*_worker.py", "*_converter.py") for path in FOLDER.glob(pattern)]
    assert len(scripts) > 6
    for path in scripts:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert path.name.startswith("sdturbo_") or not {
            n for n in names if n and n.split(".")[0] in ("sdturbo", "sdturbo_export", "benchmarks")
        }


def test_scripts_of_every_row_exist():
    for each in PAIRS:
        for form in (each.theirs, each.ours):
            assert (FOLDER / form.worker).is_file()
            conversion = form.conversion
            while conversion:
                assert (FOLDER / conversion.converter).is_file()
                conversion = conversion.base


def test_threads_over_the_cores_are_refused():
    with pytest.raises(InvalidRequest, match="This machine has"):
        compare.request_of("tiny", threads=4096, steps=1)


def test_bf16_is_not_measured_where_programs_compute_in_fp32(suite, request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(steadiness, "precision_here", lambda: "fp32")
    (row,) = suite(pair("a", dataclasses.replace(peer("draws"), precision="bf16")))["rows"]
    assert row["error"].startswith("this CPU has no bf16")
