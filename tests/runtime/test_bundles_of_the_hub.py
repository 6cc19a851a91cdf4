"""Bundles from the Hub, by the real huggingface_hub from an imitation of the Hub: what is fetched and what is checked."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_names import NAME, changed, load, offline, without_network
from imitation import absent, install

import sdturbo
from sdturbo import Bundle, BundleError, InvalidRequest
from sdturbo.backends.opening import needed_files, open_bundle
from sdturbo.bundle.description import identity
from sdturbo.bundle.hub_errors import require_hub
from sdturbo.bundle.plans import Plan, PlanKey, choose_plan, read_plans
from sdturbo.errors import PlanMismatch

pytest.importorskip("huggingface_hub")


def test_a_bundle_is_fetched_by_its_name(hub, repository, files, bundle_dir):
    pipe = load()
    assert pipe.bundle.bundle_id == Bundle.load(bundle_dir).bundle_id
    assert pipe.bundle.path.name == repository.branches["main"]
    assert hub.fetched() == sorted(set(files) - {"README.md", ".gitattributes"})
    assert all((pipe.bundle.path / name).read_bytes() == files[name] for name in hub.fetched())
    assert (pipe.bundle.path / "tokenizer.json").is_symlink()


def test_a_name_without_a_revision_is_said_before_the_first_request(hub, repository, monkeypatch):
    warnings = []
    monkeypatch.setattr("sdturbo.bundle.hub.log.warning", lambda *words: warnings.append((*words, *hub.requests)))
    load(revision="main")
    hub.requests.clear()
    load()
    assert warnings == [("there is no directory %s here: fetching %s from the Hugging Face Hub", NAME, NAME)]


def test_a_commit_is_pinned_and_asked_for_once(hub, repository, files, monkeypatch):
    first, second = repository.branches["main"], repository.commit(changed(files))
    assert load(revision=first).bundle.path.name == first
    hub.requests.clear()
    assert load(revision=first).bundle.path.name == first
    offline(monkeypatch)
    assert load(revision=first).bundle.path.name == first
    assert hub.requests == []
    monkeypatch.undo()
    assert second != first


@pytest.mark.parametrize("revision", [None, "main", "v1.0+int8", "feature@2", "feature/small"])
def test_a_branch_is_that_of_the_hub_and_without_a_connection_that_of_the_cache(
    hub, repository, files, revision, monkeypatch
):
    commits = [repository.commit(content, revision or "main") for content in (files, changed(files))]
    repository.branches[revision or "main"] = commits[0]
    assert load(revision=revision).bundle.path.name == commits[0]
    repository.branches[revision or "main"] = commits[1]
    with monkeypatch.context() as patch:
        without_network(patch)
        assert load(revision=revision).bundle.path.name == commits[0]
    with monkeypatch.context() as patch:
        offline(patch)
        assert load(revision=revision).bundle.path.name == commits[0]
    assert load(revision=revision).bundle.path.name == commits[1]


def test_the_cache_is_read_as_a_directory_too(hub, repository, tmp_path):
    fetched = load().bundle.path
    hub.requests.clear()
    assert load(tmp_path / "home" / "hub" / "models--someone--model").bundle.path == fetched
    assert hub.requests == []


def test_a_directory_of_that_name_wins(hub, repository, bundle_dir, tmp_path):
    (tmp_path / "someone").mkdir()
    with pytest.raises(BundleError, match=r"no such directory in someone.*give a revision"):
        load()
    assert hub.requests == []
    assert load(revision="main").bundle.path.is_relative_to(tmp_path / "home")
    hub.requests.clear()
    (tmp_path / "someone").rmdir()
    (tmp_path / "someone").symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"no such directory in someone"):
        load()
    (tmp_path / "someone").unlink()
    (tmp_path / "someone").mkdir()
    (tmp_path / NAME).symlink_to(bundle_dir)
    assert str(load().bundle.path) == NAME
    with pytest.raises(InvalidRequest, match="A directory has none"):
        load(revision="main")
    assert hub.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "model",
        "/some/model",
        "./someone/model",
        "../someone/model",
        "a/b/c",
        "someone/model/",
        "",
        "build/x",
        "Models/x",
    ],
)
def test_what_is_no_name_on_the_hub_is_a_directory(hub, path):
    with pytest.raises(BundleError):
        load(path)
    with pytest.raises(InvalidRequest, match="A directory has none"):
        load(path, revision="main")
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "../../x", "a/../b", "/main", " main", "main\n", "--upload", 7, b"main"])
def test_a_revision_that_is_none_is_refused(hub, repository, revision):
    with pytest.raises(InvalidRequest, match=r"Got revision .*Expected a branch, a tag or a commit"):
        load(revision=revision)
    assert hub.requests == []


def with_plans(bundle_dir, tmp_path):
    """The bundle's description with a plan for each library."""
    manifest = json.loads((bundle_dir / "bundle.json").read_bytes())
    key = PlanKey("10.16.1.11", "8.9", "a GPU", "13.0", "0" * 64, "fp32")
    ahead = PlanKey("1.7.1.116", "8.9", "any", "any", "0" * 64, "fp32", library="tensorrt-rtx")
    plans = [
        Plan("compiled/a/decoder.plan", "decoder", 1, key, 0.0, 1.0),
        Plan("compiled/b/decoder.plan", "decoder", 1, ahead, None, None),
    ]
    more = {name: {"sha256": "0" * 64, "size": 9} for name in (plans[0].file, plans[1].file, "compiled/a/decoder.json")}
    manifest |= {"files": manifest["files"] | more, "compiled": [plan.to_json() for plan in plans]}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.described(tmp_path)


def test_only_what_the_backend_needs_is_needed(bundle_dir, tmp_path, monkeypatch):
    bundle = with_plans(bundle_dir, tmp_path)
    plain = {name for name in bundle.files if not name.startswith("compiled/")}
    absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    for backend in ("auto", "onnxruntime", "openvino", "cuda", "tensorrt"):
        weights = {"onnx/weights.data"} if backend == "tensorrt" else set()
        assert set(needed_files(bundle, backend)) == plain - weights
    assert set(needed_files(bundle, None)) == set(bundle.files)
    for rtx, plan in ((False, "compiled/a/decoder.plan"), (True, "compiled/b/decoder.plan")):
        install(monkeypatch, rtx=rtx)
        assert set(needed_files(bundle, "auto")) == plain | {plan}
        assert set(needed_files(bundle, "tensorrt")) == (plain | {plan}) - {"onnx/weights.data"}
        assert set(needed_files(bundle, "openvino")) == plain


def moved(files, *parts):
    """The files with what lies in `onnx` and has one of those parts in its name under `compiled`, in the manifest too."""
    places = {name: f"compiled/{name.removeprefix('onnx/')}" for name in files if any(part in name for part in parts)}
    manifest = json.loads(files["bundle.json"])
    manifest["files"] = {places.get(name, name): entry for name, entry in manifest["files"].items()}
    for stage in manifest["stages"].values():
        for graph in stage["graphs"]:
            graph["file"] = places.get(graph["file"], graph["file"])
    manifest["bundle_id"] = identity(manifest)
    content = {places.get(name, name): data for name, data in files.items()}
    return content | {"bundle.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("backend", ["null", "tensorrt"])
def test_graphs_are_checked_wherever_they_lie(hub, files, backend):
    content = moved(files, "onnx/")
    hub.new(NAME, content | {"compiled/decoder.1.onnx": content["compiled/decoder.1.onnx"][:-1] + b"x"})
    with pytest.raises(BundleError, match=r"compiled/decoder.1.onnx was altered"):
        open_bundle(NAME, backend=backend)


def test_weights_that_nobody_checks_are_refused(hub, files):
    hub.new(NAME, moved(files, "onnx/"))
    with pytest.raises(BundleError, match=r"reads weights from compiled/weights.data, which was not checked"):
        load()


def test_an_absent_graph_is_a_fault_of_the_bundle(bundle_dir, tmp_path):
    path = shutil.copytree(bundle_dir, tmp_path / "bundle")
    (path / "onnx" / "decoder.1.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx/decoder.1.onnx cannot be read"):
        Bundle.load(path, only=["tokenizer.json"])


def test_a_bundle_without_the_plans_of_others_is_read_and_the_rest_can_follow(hub, files, bundle_dir, tmp_path):
    with_plans(bundle_dir, tmp_path)
    contents = {"a/decoder.plan": b"not valid", "b/decoder.plan": b"neither  ", "a/decoder.json": b"nor this "}
    content = files | {f"compiled/{name}": data for name, data in contents.items()}
    hub.new(NAME, content | {"bundle.json": (tmp_path / "bundle.json").read_bytes()})
    assert "compiled/a/decoder.plan" in load().bundle.files
    assert not any(name.startswith("compiled/") for name in hub.fetched())
    bundle = open_bundle(NAME)
    assert read_plans(bundle) == []
    assert not any(name.startswith("compiled/") for name in hub.fetched())
    with pytest.raises(PlanMismatch, match=r"They are code, so they come with a commit alone"):
        choose_plan(bundle, [], "decoder", 1, PlanKey("10.16.1.11", "8.9", "a GPU", "13.0", "0" * 64, "fp32"))
    with pytest.raises(BundleError, match=r"(?s)decoder.plan was altered.*someone/model"):
        open_bundle(NAME, bundle.path.name)
    assert "compiled/a/decoder.plan" in hub.fetched()


def test_the_command_fetches_and_sends_no_telemetry(hub, repository, tmp_path):
    """In a process of its own, with the settings that a user has. Standard output is the document alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    arguments = [
        "generate",
        "a cat",
        "--bundle",
        NAME,
        "--revision",
        repository.branches["main"],
        "--out",
        "cat.png",
        "--json",
    ]
    hub.headers.clear()
    done = subprocess.run(
        [sys.executable, "-m", "sdturbo", *arguments, "--backend", "onnxruntime"],
        env=kept | settings | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["path"] == "cat.png"
    agents = {headers["user-agent"] if "user-agent" in headers else headers["User-Agent"] for headers in hub.headers}
    assert len(agents) == 1
    assert not {"torch", "agent", "sdturbo"} & {part.split("/")[0].strip() for part in agents.pop().split(";")}


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("", "1"), ("0", "0"), ("ON", "ON")])
def test_telemetry_is_off_unless_the_user_says_otherwise(monkeypatch, before, after):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", before)
    require_hub("this")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == after


def test_the_commands_take_a_name_and_a_revision(hub, repository, sdturbo, monkeypatch):
    monkeypatch.delenv("SDTURBO_BUNDLE")
    status, out, _ = sdturbo("info", "--bundle", NAME, "--json")
    assert (status, json.loads(out)["path"].endswith(repository.branches["main"])) == (0, True)
    status, out, _ = sdturbo("info", "--bundle", NAME, "--revision", "v2", "--json")
    assert (status, json.loads(out)["error"]["type"]) == (7, "HubError")
    status, _, err = sdturbo("info", "--revision", "v2")
    assert (status, "A directory has none" in err) == (2, True)


def test_nothing_of_the_hub_is_loaded_for_a_directory(bundle_dir):
    code = (
        "import sys; from sdturbo import Pipeline; Pipeline.load(sys.argv[1], backend='null')\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(bundle_dir)], env=environment, check=True)


def test_the_error_is_public():
    assert sdturbo.HubError.exit_code == 7
