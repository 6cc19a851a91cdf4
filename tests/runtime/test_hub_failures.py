"""What a user is told when a bundle cannot be had from the Hub, and what stays secret."""

import errno
import json
import logging
import os
import socket
import subprocess
import sys

import pytest
from hub_names import NAME, load, offline, without_network
from imitation import absent

from sdturbo import BackendUnavailable, Bundle, BundleError, HubError
from sdturbo.bundle.hub_errors import without_token

pytest.importorskip("huggingface_hub")


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
