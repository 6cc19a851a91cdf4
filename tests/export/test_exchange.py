"""A new directory in the place of an old one, with no moment in between."""

import ctypes
import errno
import threading

import pytest

from sdturbo_export import exchange as module
from sdturbo_export.exchange import exchange


@pytest.fixture
def pair(tmp_path):
    """(new, old), each with a file that says which it is."""
    paths = tmp_path / "new", tmp_path / "old"
    for path in paths:
        path.mkdir()
        (path / "name").write_text(path.name)
    return paths


def failing_with(code):
    class Libc:
        def renameat2(self, *_):
            ctypes.set_errno(code)
            return -1

    return lambda *_, **__: Libc()


def names(paths):
    return [(path / "name").read_text() for path in paths]


def test_names_are_swapped(pair):
    exchange(*pair)
    assert names(pair) == ["old", "new"]


def test_a_reader_finds_one_of_them_at_any_moment(pair):
    missing, done = [], threading.Event()

    def read():
        while not done.is_set():
            if not pair[1].exists():
                missing.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(500):
        exchange(*pair)
    done.set()
    reader.join()
    assert not missing


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_file_systems_that_cannot_swap_get_renames(pair, monkeypatch, code):
    monkeypatch.setattr(module.ctypes, "CDLL", failing_with(code))
    exchange(*pair)
    assert names(pair) == ["old", "new"]
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["new", "old"]


def test_other_failures_are_errors_that_name_both(pair, monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", failing_with(errno.EACCES))
    with pytest.raises(PermissionError) as refused:
        exchange(*pair)
    assert (refused.value.filename, refused.value.filename2) == tuple(map(str, pair))
    assert names(pair) == ["new", "old"]
