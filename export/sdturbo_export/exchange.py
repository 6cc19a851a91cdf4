"""Names on a file system: two directories exchange theirs in one step, and one of them is there at every moment."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


@contextmanager
def unfinished(path: Path) -> Generator[Path]:
    """A name beside the directory `path`, `.NAME.partial`, under which it is made. Nothing is left there at the end."""
    partial = partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_directory(path: Path) -> Generator[Path]:
    """As `unfinished`, for a new directory. It takes its name when the block ends well."""
    with unfinished(path) as partial:
        yield partial
        partial.replace(path)


def partial_name(path: Path) -> Path:
    """The name of the directory `path` until it is whole."""
    return path.with_name(f".{path.name}.partial")


def exchange(new: Path, old: Path) -> None:
    """Exchange the names of `new` and `old`, both there and on one file system, by renameat2(2) of Linux.

    File systems without it (some network ones) get two renames by way of `.NAME.old`. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(new), None, str(old))
    between = waiting_name(old)
    old.replace(between)
    new.replace(old)
    between.replace(new)


def waiting_name(path: Path) -> Path:
    """The name of an old directory while its successor takes its place in two renames."""
    return path.with_name(f".{path.name}.old")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link to `source` at the new name `target`, or a copy where there are none. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
