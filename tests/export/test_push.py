"""Bundles to the Hub and back, by the real huggingface_hub with an imitation of the Hub on this machine."""

import hashlib
import json
import shutil

import pytest
from huggingface_hub import close_session
from imitation import absent
from imitation.hub import LARGE, Hub, serving, tell
from imitation.hub_cache import cached

from sdturbo import Bundle, Pipeline
from sdturbo.bundle import EMBEDDED
from sdturbo.bundle.description import identity
from sdturbo.commands.console import run
from sdturbo_export.bundle_writer import STABILITY_TERMS
from sdturbo_export.cli import cli
from sdturbo_export.publish.card import card
from sdturbo_export.publish.hub import NO_TEXT

NAME = "someone/model"
TOKEN = "hf_secret"
APACHE = "Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"
STABILITY = "STABILITY AI COMMUNITY LICENSE AGREEMENT\nStability AI\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub(tokens={TOKEN})) as state:
        tell(monkeypatch, state, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield state


@pytest.fixture
def bundle(bundle_dir, tmp_path):
    return with_files(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def with_files(path, model=None, **files):
    """The bundle with further files listed (keywords by their stems)."""
    texts = {"LICENSE.md": APACHE, "NOTICE": "Made by someone.\n"} | {
        name.replace("__", "."): text for name, text in files.items()
    }
    manifest = json.loads((path / "bundle.json").read_bytes())
    for name, text in texts.items():
        if text is None:
            manifest["files"].pop(name, None)
            continue
        (path / name).write_text(text)
        manifest["files"][name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "size": len(text.encode())}
    manifest["model"] |= model or {}
    (path / "bundle.json").write_text(json.dumps(manifest | {"bundle_id": identity(manifest)}))
    return path


@pytest.fixture
def push(hub, bundle, capsys):
    """Run the command; gives (exit code, document)."""

    def call(*arguments, path=bundle, name=NAME):
        status = run(cli, "sdturbo-export", ["push", str(path), name, *arguments, "--json"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert TOKEN not in captured.out + captured.err
        return status, json.loads(captured.out.splitlines()[-1])

    return call


def message(document):
    return document["error"]["message"]


def test_what_was_pushed_comes_back_byte_for_byte(hub, push, bundle):
    before = sorted(path for path in bundle.rglob("*") if path.is_file())
    status, document = push()
    assert status == 0
    assert document["url"] == f"{hub.address}/{NAME}/tree/{document['revision']}"
    pipe = Pipeline.load(NAME, revision=document["revision"], backend="null")
    assert pipe.bundle.bundle_id == Bundle.load(bundle).bundle_id
    names = {*pipe.bundle.files, "bundle.json"}
    assert {"LICENSE.md", "NOTICE", "onnx/weights.data"} < names
    assert all((pipe.bundle.path / name).read_bytes() == (bundle / name).read_bytes() for name in names)
    assert set(document["files"]) == names | {"README.md"}
    assert sorted(path for path in bundle.rglob("*") if path.is_file()) == before
    assert not (pipe.bundle.path / "README.md").exists()
    assert sum(len(data) > LARGE for data in hub.repositories[NAME].commits[document["revision"]].values()) > 2


def test_a_push_is_one_commit_with_its_message(hub, push, bundle):
    push()
    push("--message", "int8 for CPUs", path=with_files(bundle, NOTICE="Another.\n"))
    commits = [request for request in hub.requests if request.startswith("COMMIT")]
    assert commits[0].startswith("COMMIT Bundle ")
    assert commits[1:] == ["COMMIT int8 for CPUs"]
    assert len(hub.repositories[NAME].commits) == 3  # with that of a new repository


def test_the_same_bundle_again_is_no_commit_and_sends_no_weights(hub, push):
    first = push()[1]["revision"]
    hub.requests.clear()
    assert push()[1]["revision"] == first
    assert not any(request.startswith(("PUT", "COMMIT")) for request in hub.requests)


def test_a_broken_push_goes_on_where_it_stopped(hub, push):
    hub.broken = f"/{NAME}/commit/"
    status, document = push()
    assert (status, document["error"]["type"]) == (7, "HubError")
    assert "bundle cannot be pushed to someone/model: " in message(document)
    assert any(request.startswith("PUT") for request in hub.requests)
    hub.broken = ""
    hub.requests.clear()
    assert push()[0] == 0
    assert not any(request.startswith("PUT") for request in hub.requests)


def test_a_branch_is_made_and_pushed_to(hub, push, bundle):
    main = push()[1]["revision"]
    for _ in range(2):
        status, document = push("--revision", "int8", path=with_files(bundle, NOTICE="Another.\n"))
        assert status == 0
    assert hub.repositories[NAME].branches == {"main": main, "int8": document["revision"]}
    assert Pipeline.load(NAME, revision="int8", backend="null").bundle.path.name == document["revision"]


def test_a_private_repository_is_made_private_and_a_public_one_refused(hub, push):
    assert push("--private")[0] == 0
    assert hub.repositories[NAME].private
    assert push("--private")[0] == 0
    assert push()[0] == 0
    hub.new("someone/public")
    status, document = push("--private", name="someone/public")
    assert status == 2
    assert "someone/public is on the Hub and is public" in message(document)
    assert len(hub.repositories["someone/public"].commits) == 1


def test_the_card_says_licence_library_base_model_and_use(hub, push, bundle):
    with_files(bundle, {"source": "stabilityai/sd-turbo", "revision": "b" * 40}, LICENSE__md=STABILITY)
    commit = push()[1]["revision"]
    files = hub.repositories[NAME].commits[commit]
    _, fields, text = files["README.md"].decode().split("---\n", 2)
    assert fields.splitlines() == [
        'license: "other"',
        'license_name: "stabilityai-ai-community"',
        'license_link: "LICENSE.md"',
        'library_name: "sdturbo"',
        'pipeline_tag: "text-to-image"',
        'tags: ["sd-turbo", "onnx"]',
        'base_model: "stabilityai/sd-turbo"',
    ]
    assert "Powered by Stability AI" in text
    assert f'sdturbo generate "a photo of a cat" --bundle {NAME}' in text
    assert f'Pipeline.load("{NAME}", revision=' in text


def test_a_card_is_read_by_the_hub_library(bundle):
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import ModelCard

    path = with_files(bundle, {"source": 'build/mine: "x"', "name": "mine: 'x'"})
    data = ModelCard(card(Bundle.load(path), NAME, APACHE)).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.base_model) == ("apache-2.0", "sdturbo", None)
    both = ModelCard(card(Bundle.load(path), NAME, f"{APACHE}\n# Licence of the decoder\n\nMIT")).data
    assert both.license == "other"


def test_a_card_that_is_there_stays(hub, push, bundle):
    (bundle / "README.md").write_text("# mine")
    commit = push()[1]["revision"]
    assert hub.repositories[NAME].commits[commit]["README.md"] == b"# mine"
    (bundle / "README.md").unlink()
    status, document = push(path=with_files(bundle, NOTICE="Another.\n"))
    assert (status, "README.md" in document["files"]) == (0, False)
    assert hub.repositories[NAME].commits[document["revision"]]["README.md"] == b"# mine"


def test_a_card_that_leads_out_is_not_published_and_one_that_goes_along_is_said(hub, push, bundle, tmp_path, capsys):
    (tmp_path / "private").write_text("a secret")
    (bundle / "README.md").symlink_to(tmp_path / "private")
    status, document = push()
    assert (status, "README.md leads out of the bundle, to " in message(document)) == (3, True)
    assert hub.requests == []
    (bundle / "README.md").unlink()
    (bundle / "README.md").write_text("# mine")
    assert push(path=cached(bundle, tmp_path / "cache"))[0] == 0
    run(cli, "sdturbo-export", ["push", str(bundle), NAME])
    assert "holds a README.md, which goes along as the card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licence", "is_apache"),
    [
        (APACHE, True),
        ((EMBEDDED / "LICENSE.md").read_text(), True),
        ("\n    Apache License\n    Version 2.0, January 2004\n", True),
        (f"{STABILITY}The code is under the Apache License, Version 2.0.", False),
        (f"{APACHE}The weights are under CreativeML Open RAIL-M.", False),
        (f"{APACHE}The weights are a Stability AI model.", False),
        ("CC BY-NC 4.0. The code is under the Apache License, Version 2.0.", False),
    ],
)
def test_only_a_text_that_begins_as_apache_is_apache(bundle, licence, is_apache):
    assert ('license: "apache-2.0"' in card(Bundle.load(bundle), NAME, licence)) == is_apache


def test_files_that_the_bundle_does_not_list_stay_here(hub, push, bundle, capsys):
    (bundle / ".cache" / "huggingface").mkdir(parents=True)
    for name in (".cache/huggingface/note", ".env", "onnx/decoder.tmp"):
        (bundle / name).write_text("secret")
    run(cli, "sdturbo-export", ["push", str(bundle), NAME])
    out, err = capsys.readouterr()
    assert "not pushed, because the bundle does not list them: .cache/huggingface/note; .env; onnx/decoder.tmp" in err
    assert b"secret" not in hub.repositories[NAME].commits[out.split("/tree/")[1].split()[0]].values()
    assert f'Pipeline.load("{NAME}", revision="' in out


def test_a_snapshot_of_the_cache_is_pushed(hub, push, bundle, tmp_path):
    status, document = push(path=cached(bundle, tmp_path / "cache").parents[1])
    assert status == 0
    assert hub.repositories[NAME].commits[document["revision"]]["NOTICE"] == (bundle / "NOTICE").read_bytes()


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"LICENSE__md": None}, "it lists no LICENSE.md, without which it must not be passed on"),
        ({"NOTICE": None}, "it lists no NOTICE"),
        ({"LICENSE__md": STABILITY_TERMS}, "Put LICENSE.md into the checkpoint's directory and build the bundle again"),
        ({"__env": "secret"}, "it lists hidden or temporary files: .env"),
        ({"kernels__tmp": "code"}, "it lists hidden or temporary files: kernels.tmp"),
    ],
)
def test_what_must_not_be_passed_on_is_refused(hub, push, bundle, files, fault):
    status, document = push(path=with_files(bundle, **files))
    assert status == 3
    assert fault in message(document)
    assert hub.requests == []


def test_the_terms_without_a_text_are_recognised():
    assert NO_TEXT in " ".join(STABILITY_TERMS.split())


def test_an_altered_bundle_is_refused(hub, push, bundle):
    (bundle / "NOTICE").write_text("made by nobody.\n")
    status, document = push()
    assert (status, "NOTICE" in message(document)) == (3, True)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "", "someone/mo del", "--private/x"])
def test_another_name_is_refused(hub, push, name):
    assert push(name=name)[0] == 2
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("ALL_PROXY", "socks5://me:secret@127.0.0.1:9", "SOCKS"), ("HTTPS_PROXY", "127.0.0.1:9:9", "InvalidURL")],
)
def test_a_mistake_in_a_proxy_is_said(hub, push, monkeypatch, variable, value, words):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    close_session()
    status, document = push()
    close_session()
    assert status == 7
    assert words in message(document)
    assert "ALL_PROXY, HTTPS_PROXY" in message(document)
    assert "secret" not in message(document)


def test_a_date_is_a_branch(hub, push):
    assert push("--revision", "20261231")[0] == 0


def test_a_commit_is_no_branch(hub, push):
    status, document = push("--revision", "a" * 40)
    assert (status, "Expected the name of a branch" in message(document)) == (2, True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "words"), [(None, ["401", "hf auth login", "HF_TOKEN"]), ("hf_read_only", ["401", "hf auth login"])]
)
def test_without_a_right_to_write_the_way_out_is_said(hub, push, monkeypatch, token, words):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    status, document = push()
    assert status == 7
    assert [word for word in words if word not in message(document)] == []


def test_a_file_that_the_repository_ignores_is_an_error(hub, push):
    hub.new(NAME, {".gitignore": b"onnx/weights.data"})
    status, document = push()
    assert status == 7
    assert "lacks onnx/weights.data: a .gitignore there names them" in message(document)


def test_without_huggingface_hub_the_extra_is_named(push, monkeypatch):
    absent(monkeypatch, "huggingface_hub")
    status, document = push()
    assert (status, "pip install '.[hub]'" in message(document)) == (4, True)


def test_plans_are_not_written_into_the_cache(bundle, tmp_path, capsys):
    snapshot = cached(bundle, tmp_path / "cache")
    blobs = {path: path.stat() for path in snapshot.parents[1].glob("blobs/*")}
    assert run(cli, "sdturbo-export", ["trt", str(snapshot)]) == 2
    assert "Copy it with `cp -rL`" in capsys.readouterr().err
    assert {path: path.stat() for path in snapshot.parents[1].glob("blobs/*")} == blobs
