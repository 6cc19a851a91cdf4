"""Compiled graphs, kept in the user's cache for the next load. Standard library only.

A blob is code for one library and CPU. Its name holds the hash of everything that decides it, and its own SHA-256, which is
checked before anything reads it. A failure here costs a compilation and is logged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sdturbo.cache.directory import private_directory
from sdturbo.cache.hashes import HashMemory
from sdturbo.files import atomic_write, sha256_file

UNUSED = 30 * 24 * 3600.0  # seconds after which a blob that nothing loaded is deleted

log = logging.getLogger("sdturbo")


def cache_key(parts: Mapping[str, object]) -> str:
    """Hex digits that name the graph compiled from and for `parts`, a JSON document."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class CompiledCache:
    """Blobs by key. Any number of processes may use it at once: files appear whole and are never changed."""

    def __init__(self, *, trust_unchanged: bool) -> None:
        """trust_unchanged: a blob is not hashed again for a week while it is unchanged."""
        self._directory = private_directory("compiled")
        self._memory = HashMemory()
        self._sha256 = self._memory.sha256 if trust_unchanged else sha256_file

    def find(self, key: str) -> mmap.mmap | None:
        """The blob's bytes as a private mapping of its file. None if there is none. A damaged one is deleted."""
        if self._directory is None:
            return None
        try:
            for path in self._directory.glob(f"{key}-*.blob"):
                if self._sha256(path) != path.stem.partition("-")[2]:
                    log.warning("%s is damaged and not used", path)
                    self._delete(path)
                    continue
                with suppress(OSError):  # the cache is read-only
                    path.with_suffix(".used").touch()  # not the blob, whose times say that it is unchanged
                with path.open("rb") as file:
                    # pages that this process may write for itself alone, as libraries ask
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            log.warning("the cache of compiled graphs cannot be read: %s", error)
        return None

    def put(self, key: str, blob: memoryview) -> bool:
        """Keep `blob` under `key`, and delete blobs without use for a month. Returns whether it could be kept."""
        if self._directory is None:
            return False
        digest = hashlib.sha256(blob).hexdigest()
        path = self._directory / f"{key}-{digest}.blob"
        try:
            self._clear()
            with atomic_write(path) as file:
                file.write(blob)
        except OSError as error:
            log.warning("a compiled graph is not kept for the next load: %s", error)
            return False
        self._memory.remember(path, digest)
        return True

    def drop(self, key: str) -> None:
        """Delete the blob under `key`, which its library refused."""
        if self._directory is not None:
            for path in self._directory.glob(f"{key}-*.blob"):
                self._delete(path)

    def _clear(self) -> None:
        assert self._directory is not None
        for path in self._directory.iterdir():
            with suppress(OSError):  # another process was faster
                times = [file.stat().st_mtime for file in (path, path.with_suffix(".used")) if file.exists()]
                if times and time.time() - max(times) > UNUSED:
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", path, error)
