"""The cache of huggingface_hub: `models--owner--name` with `blobs`, `refs` and `snapshots`. Standard library only.

A snapshot is a directory named after its commit. Its files are links to blobs. Where a file system has no links, they are
plain files. Since version 2 a blob may be a link too, to a store that all repositories of a cache share.
Source: huggingface.co/docs/huggingface_hub/guides/manage-cache, and its `utils/_shared_blobs.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

REPOSITORY = "models--"  # begins the name of a repository's directory, models--owner--name
BLOBS, REFS, SNAPSHOTS = "blobs", "refs", "snapshots"
COMMIT = re.compile(r"[0-9a-f]{40}")
_STORE_VERSION = "1\n"  # of its layout, the mark's text
_STORE_MARK, _STORED = ".huggingface-shared-blobs", re.compile(r"[0-9a-f]{64}")


def repository_of(path: Path) -> Path | None:
    """The directory of the repository whose snapshot `path` is or lies in. None if it is in no cache.

    It may itself be a link, for example to another disk.
    """
    real = path.resolve()
    for place in (path.absolute(), real):
        for folder in (place, *place.parents):
            snapshots, repository = folder.parent, folder.parent.parent
            is_snapshot = COMMIT.fullmatch(folder.name) is not None and snapshots.name == SNAPSHOTS
            if (
                is_snapshot
                and repository.name.startswith(REPOSITORY)
                and os.path.isdir(repository / BLOBS)  # noqa: PTH112 (False where Path raises)
                and real.is_relative_to(repository.resolve())
            ):
                return repository
    return None


def is_inside(repository: Path, file: Path) -> bool:
    """Whether `file`, once its links are followed, lies in the repository or in the store of blobs that its cache shares."""
    blob, store = file.resolve(), repository.parent / BLOBS
    is_stored = (
        blob.parent.parent == store.resolve()
        and _STORED.fullmatch(blob.name) is not None
        and blob.parent.name == blob.name[:2]
        and _is_store(store)
    )
    return is_stored or blob.is_relative_to(repository.resolve())


def _is_store(store: Path) -> bool:
    """Whether huggingface_hub would take that directory for its store: neither it nor its mark is a link."""
    mark = store / _STORE_MARK
    try:
        return not (store.is_symlink() or mark.is_symlink()) and mark.read_text(encoding="utf-8") == _STORE_VERSION
    except (OSError, ValueError):
        return False


def repository_id(repository: Path) -> str:
    """`owner/name` of a repository's directory in the cache."""
    return repository.name.removeprefix(REPOSITORY).replace("--", "/")


def snapshot_in(path: Path, content: str) -> tuple[Path, str | None]:
    """(The snapshot in a repository's directory, None), or (`path`, the fault) if it is not clear which one is meant.

    The snapshot is that of `refs/main`, or the only one where there is no such file. Any other directory is its own snapshot.
    content: the name of a file that such a directory holds. Raises OSError.
    """
    if not (path / SNAPSHOTS).is_dir() or (path / content).exists():
        return path, None
    commits = sorted(folder for folder in (path / SNAPSHOTS).iterdir() if folder.is_dir())
    main = path / REFS / "main"
    places = ", ".join(map(str, commits)) or "none"
    if main.is_file():
        commit = main.read_text(encoding="utf-8", errors="replace").strip()
        if path / SNAPSHOTS / commit in commits:
            return path / SNAPSHOTS / commit, None
        fault = f"its {REFS}/main names {commit[:40]!r}, of which no snapshot is here: name the one you mean ({places})"
        return path, fault
    if len(commits) == 1:
        return commits[0], None
    fault = f"this is a repository in the Hub's cache with {len(commits)} snapshots: name the one you mean ({places})"
    return path, fault
