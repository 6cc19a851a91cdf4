"""`response_format: "url"`: links that are signed, end after minutes, and are answered by every server with their key."""

import base64
import errno
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from serving import EDITS, GENERATIONS, client_of, listening, png

from sdturbo.commands.console import run
from sdturbo.errors import InvalidRequest
from sdturbo_serve import Settings
from sdturbo_serve import links as links_module
from sdturbo_serve.cli import cli
from sdturbo_serve.errors import ApiError
from sdturbo_serve.links import DirectoryStore, MemoryStore, open_links
from sdturbo_serve.settings import check_shared_links

PUBLIC = "https://example.org/pictures/"
LINKED = {"prompt": "a fox", "seed": 7, "response_format": "url"}


@pytest.fixture
def shared(tmp_path):
    """Settings of servers that share their links."""
    (tmp_path / "links").mkdir()
    (tmp_path / "key.txt").write_text("a key that all replicas have\n".replace(" ", "-"))
    return {"public_url": PUBLIC, "link_dir": tmp_path / "links", "link_key_file": tmp_path / "key.txt"}


def local(url):
    """The path of a link as it arrives behind a proxy that takes /pictures away."""
    assert url.startswith("https://example.org/pictures/links/")
    return url.removeprefix("https://example.org/pictures")


def test_directory_and_key_may_lie_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "links").mkdir()
    (tmp_path / "key.txt").write_text("a key of 16 letters".replace(" ", "-"), encoding="utf-8-sig")
    links = open_links(Settings(public_url=PUBLIC, link_dir=Path("~/links"), link_key_file=Path("~/key.txt")))
    links.add(b"picture", "png")
    assert [file.read_bytes() for file in (tmp_path / "links").iterdir()] == [b"picture"]


def test_a_link_leads_to_the_picture_and_needs_no_key(bare):
    key = {"Authorization": "Bearer correct-horse"}
    with client_of(bare, public_url=PUBLIC, api_keys=("correct-horse",)) as client:
        for output_format in ("png", "jpeg", "webp"):
            body = LINKED | {"output_format": output_format, "n": 2}
            data = client.post(GENERATIONS, json=body, headers=key).json()["data"]
            plain = client.post(GENERATIONS, json=body | {"response_format": None}, headers=key).json()["data"]
            assert [set(datum) for datum in data] == [{"url", "seed"}] * 2
            for linked, inline in zip(data, plain, strict=True):
                answer = client.get(local(linked["url"]))
                assert answer.headers["content-type"] == f"image/{output_format}"
                assert answer.content == base64.b64decode(inline["b64_json"])
                assert "private" in answer.headers["cache-control"]
        form = {"prompt": "a fox", "response_format": "url"}
        edited = client.post(EDITS, data=form, files={"image": png()}, headers=key).json()["data"]
        assert client.get(local(edited[0]["url"])).status_code == 200


def test_the_official_client_gets_links(bare):
    with listening(bare, public_url=PUBLIC) as url:
        images = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0).images
        datum = images.generate(prompt="a fox", response_format="url").data[0]
    assert datum.b64_json is None
    assert local(datum.url)


def test_a_link_that_was_changed_is_refused(bare):
    with client_of(bare, public_url=PUBLIC) as client:
        link = local(client.post(GENERATIONS, json=LINKED).json()["data"][0]["url"])
        name = urlsplit(link).path.rpartition("/")[2]
        later = name.replace(name[:10], str(int(name[:10]) + 9999))
        for wrong in (link[:-1], link + "x", link.replace(name, later), link.replace(".png", ".webp"), link + "é"):
            answer = client.get(wrong)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "link_invalid")
        for odd in (f"/links/{name}", "/links/..%2f..%2fetc%2fpasswd?signature=x", "/links/x?signature="):
            assert client.get(odd).status_code in (400, 403, 404)


def test_a_link_ends_after_minutes(bare, monkeypatch):
    with client_of(bare, public_url=PUBLIC) as client:
        link = local(client.post(GENERATIONS, json=LINKED).json()["data"][0]["url"])
        now = time.time()
        monkeypatch.setattr(links_module.time, "time", lambda: now + links_module.LINK_S - 5)
        assert client.get(link).status_code == 200
        monkeypatch.setattr(links_module.time, "time", lambda: now + links_module.LINK_S + 5)
        assert client.get(link).status_code == 410


def test_a_link_is_good_on_every_server_with_the_key(bare, shared, tmp_path):
    (tmp_path / "other.txt").write_text("another-key-of-enough-characters")
    with client_of(bare, **shared) as first, client_of(bare, **shared) as second:
        link = local(first.post(GENERATIONS, json=LINKED).json()["data"][0]["url"])
        assert second.get(link).content == first.get(link).content != b""
    with client_of(bare, **shared) as restarted:
        assert restarted.get(link).status_code == 200
    with client_of(bare, **shared | {"link_key_file": tmp_path / "other.txt"}) as stranger:
        assert stranger.get(link).status_code == 403


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_a_store_holds_the_newest_and_drops_what_has_ended(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(links_module, "MAX_FILES", 3)
    monkeypatch.setattr(links_module, "MAX_BYTES", 100)
    (tmp_path / "notes.txt").write_text("not ours")
    store = MemoryStore() if kind == "memory" else DirectoryStore(tmp_path)
    now = int(time.time())
    names = [f"{now + 100 + i}-{i:032x}.png" for i in range(8)]

    def held():
        return [i for i, name in enumerate(names) if store.get(name)]

    for name in names[:5]:
        store.put(name, bytes(10))
    assert held() == [2, 3, 4]
    store.put(names[5], bytes(85))
    assert held() == [4, 5]
    store.put(names[6], bytes(10))
    assert held() == [5, 6]
    monkeypatch.setattr(links_module.time, "time", lambda: now + 106.5)
    store.put(names[7], bytes(1))
    assert held() == [7]
    assert (tmp_path / "notes.txt").exists()
    assert len(list(tmp_path.iterdir())) == (1 if kind == "memory" else 2)


def test_a_directory_that_fails_is_said_and_leaves_no_part(bare, shared, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with client_of(bare, **shared) as client:
        link = local(client.post(GENERATIONS, json=LINKED).json()["data"][0]["url"])
        for place in ("replace", "read_bytes"):
            with monkeypatch.context() as patch:
                patch.setattr(Path, place, full)
                answer = client.get(link) if place == "read_bytes" else client.post(GENERATIONS, json=LINKED)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "links_failed")
            assert "No space left" in error["message"]
            assert str(shared["link_dir"]) not in answer.text
        assert client.get(link).status_code == 200
    assert len(list(shared["link_dir"].iterdir())) == 1


def test_pictures_are_for_the_servers_user_alone_and_other_files_are_left(tmp_path):
    store = DirectoryStore(tmp_path)
    picture, late = (f"{end}-{0:032x}.png" for end in (int(time.time()) + 100, 1_000_000_000))
    others = [f"{late}.backup", f"{late}.old.part", f"x{late}"]
    for name in (*others, late, f"{late}.0123abcd.part"):
        (tmp_path / name).write_bytes(b"x")
    store.put(picture, b"data")
    assert {path.name for path in tmp_path.iterdir()} == {*others, picture}
    assert (tmp_path / picture).stat().st_mode & 0o777 == 0o600


def test_the_public_host_is_answered_where_others_are_not(bare):
    with client_of(bare, public_url=PUBLIC, allow_hosts=("testserver",)) as client:
        assert client.get("/v1/models", headers={"Host": "example.org"}).status_code == 200
        assert client.get("/v1/models", headers={"Host": "other.example.org"}).status_code == 403


@pytest.mark.parametrize(
    "address", ["example.org", "ftp://example.org", "https://example.org?x", "https://u@h", "https://"]
)
def test_a_public_address_is_a_page(address):
    with pytest.raises(InvalidRequest):
        Settings(public_url=address)


def test_replicas_do_not_make_links_that_the_others_cannot_answer(shared):
    check_shared_links(Settings(**shared))
    check_shared_links(Settings())
    with pytest.raises(InvalidRequest, match="link_dir and link_key_file"):
        check_shared_links(Settings(public_url=PUBLIC))


def test_options_that_would_do_nothing_are_refused_before_the_model_is_loaded(tmp_path, capsys):
    key, short = tmp_path / "key.txt", tmp_path / "short.txt"
    key.write_text("a-key-of-enough-characters")
    short.write_text("short")
    public = ["--public-url", PUBLIC]
    for arguments, words in (
        (["--link-dir", str(tmp_path), "--link-key-file", str(key)], "public_url"),
        ([*public, "--link-dir", str(tmp_path)], "need both"),
        ([*public, "--link-dir", str(tmp_path / "nowhere"), "--link-key-file", str(key)], "missing"),
        ([*public, "--link-dir", str(tmp_path), "--link-key-file", str(tmp_path / "no.txt")], "cannot be read"),
        ([*public, "--link-dir", str(tmp_path), "--link-key-file", str(short)], "too short"),
    ):
        assert run(cli, "sdturbo-serve", ["--bundle", "nowhere", *arguments]) == InvalidRequest.exit_code
        assert words in capsys.readouterr().err


def test_an_old_picture_that_is_being_read_stays_on_windows_and_is_an_error_elsewhere(monkeypatch, tmp_path):
    def refuse(self, *_, **__):
        raise PermissionError(13, "the file is open in another program")

    now, ended = int(time.time()), tmp_path / f"1000000000-{'0' * 32}.png"
    store = DirectoryStore(tmp_path)
    ended.write_bytes(b"old")
    name = f"{now + 600}-{'1' * 32}.png"
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ApiError, match="directory of links failed"):
        store.put(name, b"new")
    monkeypatch.setattr(sys, "platform", "win32")
    store.put(name, b"newer")
    assert store.get(name) == b"newer"
    assert ended.exists()
