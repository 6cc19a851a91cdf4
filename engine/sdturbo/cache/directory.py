"""The user's cache. Its files make the next load quick and may be deleted at any time. Standard library only.

They decide which code runs, so a directory that others may write to is not used.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

from sdturbo.files import expanded

_REMEDY = "To load in less time, set SDTURBO_CACHE_DIR to a directory of this user's own."

log = logging.getLogger("sdturbo")


def cache_directory() -> Path:
    """$SDTURBO_CACHE_DIR, or else `sdturbo` in $XDG_CACHE_HOME or ~/.cache. Raises RuntimeError if there is no home."""
    if chosen := os.environ.get("SDTURBO_CACHE_DIR"):
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification: a relative path is to be ignored
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sdturbo"  # noqa: PTH117


def private_directory(name: str) -> Path | None:
    """The directory `name` of the cache, made if it is missing. None, with the reason logged, if it cannot be used.

    It may be read-only, and writing to it may raise OSError.
    """
    try:
        directory = cache_directory() / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = _fault(directory.parent) or _fault(directory)
    except OSError as error:
        directory, fault = None, f"{error.filename}: {error.strerror}"
    except (RuntimeError, ValueError) as error:
        directory, fault = None, str(error).rstrip(".")
    if fault is not None:
        log.warning("the cache of %s is not used: %s. %s", name, fault, _REMEDY)
        return None
    return directory


def _fault(directory: Path) -> str | None:
    """The reason why others could put files into `directory`, if they can."""
    if sys.platform == "win32":
        return None  # below the user's profile
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{directory} belongs to user {status.st_uid}, not to this one"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{directory} can be written by others: `chmod go-w` it"
    return None
