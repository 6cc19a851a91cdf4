"""SHA-256 of large files, not computed again while the file is unchanged. Standard library only.

A file counts as unchanged for a week if device, inode, size, mtime and ctime are the noted ones. Every write sets a file's
ctime, which no program can set back. A disk that loses bits does not set it. On Windows ctime is the time when the file was
made, so everything is hashed there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from sdturbo.cache.directory import private_directory
from sdturbo.files import atomic_write, sha256_file

LARGE = 4 << 20  # bytes. Hashing less takes milliseconds
WEEK = 7 * 24 * 3600.0  # seconds
IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
SETTLED = 2.0  # seconds. A later write in the same tick of the file system's clock would not show

log = logging.getLogger("sdturbo")


class HashMemory:
    """Known hashes, one note per file in the user's cache. Without a usable cache everything is hashed."""

    def __init__(self) -> None:
        self._directory = None if sys.platform == "win32" else private_directory("hashes")

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of the file, from memory if it is large, unchanged and was hashed within a week. Raises OSError."""
        before = _identity(path)
        if before["st_size"] < LARGE or self._directory is None:
            return sha256_file(path)
        if (known := self._recall(path, before)) is not None:
            return known
        start = time.time()
        digest = sha256_file(path)
        if start - max(before["st_mtime_ns"], before["st_ctime_ns"]) / 1e9 > SETTLED:
            self.remember(path, digest, before)
        return digest

    def remember(self, path: Path, digest: str, identity: dict[str, int] | None = None) -> None:
        """Note the file's hash. identity: that of the file before it was hashed, by default the present one."""
        if self._directory is None:
            return
        try:
            identity = identity or _identity(path)
            if identity == _identity(path):
                with atomic_write(self._note(path)) as file:
                    file.write(json.dumps({"sha256": digest, "hashed_at": time.time(), **identity}).encode())
        except OSError as error:
            log.info("%s is hashed again at the next load, because its hash cannot be noted: %s", path.name, error)

    def _recall(self, path: Path, identity: dict[str, int]) -> str | None:
        try:
            note: Any = json.loads(self._note(path).read_bytes())
            age = time.time() - note["hashed_at"]
            same = all(note[name] == value for name, value in identity.items())
            return str(note["sha256"]) if same and 0 <= age <= WEEK else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _note(self, path: Path) -> Path:
        assert self._directory is not None
        name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
        return self._directory / f"{name[:32]}.json"


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {name: getattr(status, name) for name in IDENTITY}
