"""Hashing files, reading texts, and writing files whole or not at all. Standard library only."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a `~` at its beginning read as the home. No shell reads settings of services, or --out=~/cat.png.

    Where there is no home it stays as it is.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises where there is no home)


def read_text(path: Path) -> str:
    """The text of a small file that a user has written, as `decode_text` reads it. Raises OSError, ValueError."""
    return decode_text(path.read_bytes())


def decode_text(data: bytes) -> str:
    """UTF-8 without its byte order mark, or UTF-16 with one, as editors and PowerShell on Windows write it.

    Raises ValueError for bytes that are neither.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # which no UTF-8 begins with
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well. Otherwise nothing is left of it.

    A link stays, and the file it leads to is replaced. Raises OSError for a directory or a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a directory or a device, not a plain file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
