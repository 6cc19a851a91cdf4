"""Temporary directories in the user's cache, of which a killed process leaves its own behind. Standard library only.

A process holds a lock on its directory, which the system drops at its end. Where there are no such locks, a day is waited.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

DAY = 24 * 3600.0  # seconds
JUST_MADE = 60.0  # seconds. A directory is made before its lock is taken


@contextmanager
def in_use(directory: Path) -> Generator[None]:
    """`remove_abandoned` leaves the directory alone during the block. Raises OSError."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def remove_abandoned(parent: Path) -> None:
    """Remove the directories in `parent` that no process uses any more. What cannot be removed stays."""
    with suppress(OSError):
        for directory in parent.iterdir():
            if directory.is_dir() and not directory.is_symlink() and _is_abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)


def _is_abandoned(directory: Path) -> bool:
    age = time.time() - directory.stat().st_mtime
    if sys.platform == "win32":
        return age > DAY
    if age < JUST_MADE:
        return False
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return age > DAY
    finally:
        os.close(handle)
    return True
