"""Bundles from the Hub, by the real huggingface_hub from an imitation of the Hub on this machine."""

import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys

import pytest
from imitation import absent, install
from imitation.hub import Hub, serving, tell

import sdturbo
from sdturbo import BackendUnavailable, Bundle, BundleError, HubError, InvalidRequest, Pipeline
from sdturbo.backends.opening import needed_files, open_bundle
from sdturbo.bundle.description import identity
from sdturbo.bundle.hub_errors import require_hub, without_token
from sdturbo.bundle.plans import Plan, PlanKey, choose_plan, read_plans
from sdturbo.errors import PlanMismatch

pytest.importorskip("huggingface_hub")

NAME = "someone/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub()) as state:
        tell(monkeypatch, state, tmp_path / "home")
        monkeypatch.chdir(tmp_path)
        yield state


@pytest.fixture
def files(bundle_dir):
    """What the repository of the bundle holds."""
    content = {
        path.relative_to(bundle_dir).as_posix(): path.read_bytes() for path in bundle_dir.rglob("*") if path.is_file()
    }
    return content | {"README.md": b"# card", ".gitattributes": b""}


@pytest.fixture
def repository(hub, files):
    return hub.new(NAME, files)


def load(name=NAME, **options):
    return Pipeline.load(name, backend="null", **options)


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def without_network(monkeypatch):
    """Nobody listens on the discard port."""
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        module = sys.modules["huggingface_hub.constants"]
        old = getattr(module, name)
        monkeypatch.setattr(module, name, "http://127.0.0.1:9" + old[len(old.rstrip("/").split("/{")[0]) :])


def changed(files):
    """The files of another bundle."""
    manifest = json.loads(files["bundle.json"])
    return files | {"bundle.json": json.dumps(manifest | {"created_by": "another"}).encode()}


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


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "RepoNotFound"), ["401", "name is wrong", "hf auth login", "HF_TOKEN"]),
        ((401, ""), ["401", "hf auth login"]),
        ((403, "GatedRepo"), ["403", "gated", "Ask for access", "hf auth login"]),
        ((404, "RepoNotFound"), ["404", "no such repository"]),
        ((404, "RevisionNotFound"), ["404", "no such revision"]),
        ((429, ""), ["429", "try again"]),
        ((500, ""), ["500", "Check the connection"]),
        ((503, ""), ["503", "Check the connection"]),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(hub, repository, refusal, words):
    hub.refusal = refusal
    with pytest.raises(
        HubError, match=r"no directory someone/model, and the bundle someone/model@v2 cannot be fetched"
    ) as caught:
        load(revision="v2")
    assert [word for word in words if word not in str(caught.value)] == []


def test_no_such_revision_is_told_from_no_such_repository(hub, repository):
    with pytest.raises(HubError, match=r"has no such revision"):
        load(revision="v2")
    with pytest.raises(HubError, match=r"the name is wrong"):
        load("someone/else")


@pytest.mark.parametrize("content", ["model_index.json", "style.safetensors"])
def test_a_checkpoint_is_told_from_a_bundle(hub, content):
    hub.new("stabilityai/sd-turbo", {content: b"{}", "README.md": b""})
    with pytest.raises(
        BundleError, match=r"a checkpoint, not a bundle. `sdturbo-export build --model stabilityai/sd-turbo"
    ):
        load("stabilityai/sd-turbo")
    assert hub.fetched() == []


def test_another_repository_is_no_bundle(hub):
    hub.new(NAME, {"README.md": b""})
    with pytest.raises(BundleError, match=r"holds no bundle.json. Name a repository that `sdturbo-export push` wrote"):
        load()


@pytest.mark.parametrize("way", [offline, without_network])
def test_without_a_connection_and_a_cache_the_way_out_is_said(hub, repository, monkeypatch, way):
    way(monkeypatch)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set|ConnectError.*Check the connection"):
        load()
    assert hub.requests == []


@pytest.mark.parametrize("way", [offline, without_network])
def test_half_of_a_bundle_is_not_taken_for_one(hub, repository, monkeypatch, way):
    path = load().bundle.path
    (path / "tokenizer.json").unlink()
    way(monkeypatch)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set|Check the connection"):
        load()


def test_a_hub_that_does_not_answer_is_given_up(hub, repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/{revision}/{filename}"
        )
        with pytest.raises(HubError, match=r"Timeout.*Check the connection"):
            load()


def test_a_cut_connection_is_an_error_and_the_next_try_goes_on(hub, repository):
    hub.broken = "/weights.data"
    with pytest.raises(HubError, match=r"Check the connection .*then try again: finished files are kept"):
        load()
    hub.broken = ""
    hub.requests.clear()
    load()
    assert "onnx/weights.data" in hub.fetched()
    assert "bundle.json" not in hub.fetched()


def test_a_full_disk_is_said(hub, repository, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(HubError, match=r"No space left on device. Check the connection and the free disk space"):
        load()


def test_a_cache_that_cannot_be_written_is_said(hub, repository, tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(HubError, match=r"Check the connection and the free disk space"):
        load()


def test_a_repository_without_a_listed_file_is_not_fetched(hub, files):
    hub.new(NAME, {name: data for name, data in files.items() if name != "onnx/weights.data"})
    with pytest.raises(BundleError, match=r"the repository lacks onnx/weights.data, which its bundle.json lists"):
        load()
    assert hub.fetched() == ["bundle.json"]


def test_a_file_of_another_size_is_not_fetched(hub, files):
    size = len(files["onnx/weights.data"])
    hub.new(NAME, files | {"onnx/weights.data": files["onnx/weights.data"] + b"more"})
    with pytest.raises(BundleError, match=rf"weights.data has {size + 4} bytes in the repository, expected {size}"):
        load()
    assert hub.fetched() == ["bundle.json"]


def test_a_description_of_a_monstrous_size_is_not_fetched(hub, files, monkeypatch, bundle_dir):
    monkeypatch.setattr("sdturbo.bundle.manifest.MAX_SIZE", len(files["bundle.json"]) - 1)
    hub.new(NAME, files)
    with pytest.raises(BundleError, match=r"its bundle.json has \d+ bytes, expected at most \d+"):
        load()
    assert hub.fetched() == []
    with pytest.raises(BundleError, match=r"its bundle.json has \d+ bytes, expected at most \d+"):
        Bundle.load(bundle_dir)


def test_a_library_that_takes_part_of_a_snapshot_is_not_believed(hub, repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_options: None)
    with pytest.raises(HubError, match=r"was fetched in part: .* lacks golden.png, onnx/.*HF_HUB_OFFLINE is not set"):
        load()


def test_a_truncated_description_in_the_cache_names_the_file_to_delete(hub, repository):
    path = load().bundle.path
    blob = (path / "bundle.json").resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    with pytest.raises(BundleError, match=rf"bundle.json cannot be read: .*Delete {blob}, then"):
        load()
    blob.unlink()
    assert load().bundle.path == path


def test_the_blob_of_an_altered_file_is_named_and_the_way_out_works(hub, repository):
    path = load().bundle.path
    blob = (path / "tokenizer.json").resolve()
    blob.write_bytes(blob.read_bytes().replace(b"vocab", b"VOCAB", 1))
    with pytest.raises(BundleError, match=rf"delete {blob}, then name it by its Hub id, someone/model"):
        load()
    blob.unlink()
    assert load().bundle.path == path


def test_what_was_altered_on_the_hub_is_refused(hub, files):
    hub.new(NAME, files | {"tokenizer.json": files["tokenizer.json"].replace(b"vocab", b"VOCAB", 1)})
    with pytest.raises(
        BundleError,
        match=r"tokenizer.json was altered: sha256 .*(?s:.)*delete .*models--someone--model/blobs/\w+, then",
    ):
        load()


def test_the_token_opens_a_private_repository_and_is_in_no_text(hub, files, monkeypatch, caplog, capfd):
    hub.new(NAME, files, private=True)
    hub.tokens.add("hf_secret")
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_one")
    with pytest.raises(HubError, match="the token in use does not open it") as caught:
        load()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load()
    texts = f"{caught.value}{caplog.text}{capfd.readouterr()}"
    assert "hf_secret" not in texts
    assert "hf_wrong_one" not in texts
    monkeypatch.setenv("HF_TOKEN", "of another form")
    for text, expected in (
        ("Illegal header value b'Bearer hf_secret'", "Illegal header value b'Bearer (token)'"),
        ("authorization: bearer x.y", "authorization: bearer (token)"),
        ("'https://me:pass@proxy/a?X-Signature=1&b=2'", "'https://(token)@proxy/a?(token)'"),
        ("Illegal value of another form.", "Illegal value (token)."),
    ):
        assert without_token(text) == expected


def test_without_huggingface_hub_the_extra_is_named(monkeypatch, tmp_path):
    absent(monkeypatch, "huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BackendUnavailable, match=r"no directory someone/model.*huggingface_hub.*pip install '.\[hub\]'"
    ):
        load()


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


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "SOCKS"),
        ("HTTPS_PROXY", "127.0.0.1:9:9", "InvalidURL"),
        ("HF_ENDPOINT", "http://[bad", "Invalid IPv6 URL"),
    ],
)
def test_a_mistake_in_the_network_settings_is_said(tmp_path, variable, value, words):
    """In a process of its own, because huggingface_hub reads them at its import."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    settings = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "sdturbo", "info", "--bundle", NAME, "--revision", "main", "--json"],
        env=kept | settings | {variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (7, "HubError"), done.stderr
    assert words in error["message"]
    assert "Check HF_ENDPOINT and the proxies" in error["message"]


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
