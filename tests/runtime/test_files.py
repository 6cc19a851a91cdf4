import codecs
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdturbo.files import atomic_write, expanded, read_text, sha256_file


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "data",
    [
        "schlüssel\n".encode(),
        codecs.BOM_UTF8 + "schlüssel\n".encode(),  # Notepad, Excel
        codecs.BOM_UTF16_LE + "schlüssel\n".encode("utf-16-le"),  # PowerShell's >
        codecs.BOM_UTF16_BE + "schlüssel\n".encode("utf-16-be"),
    ],
)
def test_a_text_is_read_without_its_byte_order_mark(tmp_path, data):
    (tmp_path / "text").write_bytes(data)
    assert read_text(tmp_path / "text") == "schlüssel\n"


@pytest.mark.parametrize("data", [b"\xff", b"caf\xe9", codecs.BOM_UTF16_LE + b"x", codecs.BOM_UTF8 + b"\x80"])
def test_bytes_that_are_no_text_are_refused(tmp_path, data):
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(ValueError, match="codec can't decode"):
        read_text(tmp_path / "text")


def test_a_tilde_is_the_home_at_the_beginning_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    for other in ("-", "a/~/x", "./~", "~no-such-user/x"):
        assert str(expanded(other)) == other.removeprefix("./")


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "new/folder/file"
    with atomic_write(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        file.write(b" whole")
    assert target.read_bytes() == b"half whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_write(target) as file:
        file.write(b"new")
        raise OSError("disk full")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_writers_of_one_file_do_not_mix(tmp_path):
    target = tmp_path / "file"

    def write(digit: int) -> bytes:
        with atomic_write(target) as file:
            for _ in range(100):
                file.write(b"%d" % digit * 100)
        return target.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(write, range(8)))
    assert all(len(data) == 10_000 and len(set(data)) == 1 for data in contents)
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_what_is_no_plain_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a plain file"), atomic_write(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_the_longest_name_can_be_written(tmp_path):
    with atomic_write(tmp_path / ("x" * 255)) as file:
        file.write(b"x")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"x"
