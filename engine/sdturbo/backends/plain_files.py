"""A graph and its weights without links, for libraries that read no weights outside the graph's directory.

The cache of huggingface_hub keeps every file as a link to a blob. The library gets hard links to the blobs, which take no room,
or copies where the file system has none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sdturbo.bundle.external_data import external_locations
from sdturbo.cache.directory import private_directory
from sdturbo.cache.leases import in_use, remove_abandoned
from sdturbo.errors import BackendUnavailable


@contextmanager
def plain_files(graph: Path, library: str) -> Generator[Path]:
    """The ONNX file `graph`, beside its weights. If one of them is a link, another file with the same bytes for a while.

    A hard link changes a file's ctime. Its hash is computed again at the next load.
    library: that reads the file, for texts. Raises BackendUnavailable if there is no room for the copy.
    """
    try:
        names = [graph.name, *external_locations(graph)]
    except (OSError, ValueError):  # the library says what is wrong with the file
        names = []
    if not any((graph.parent / name).is_symlink() for name in names):
        yield graph
        return
    with _copied(graph.parent, names, library) as directory:
        yield directory / graph.name


@contextmanager
def _copied(source: Path, names: Sequence[str], library: str) -> Generator[Path]:
    """A directory with those files of `source`: in the user's cache, or else among the temporary ones."""
    reasons: list[str] = []
    shared = private_directory("graphs")
    if shared is not None:
        remove_abandoned(shared)
    for place in (shared, None):
        with ExitStack() as stack:
            try:
                path = Path(stack.enter_context(TemporaryDirectory(dir=place, ignore_cleanup_errors=True)))
                stack.enter_context(in_use(path))
                for name in names:
                    _link_or_copy((source / name).resolve(), path / name)
            except OSError as error:
                reasons.append(str(error))
                continue
            yield path
            return
    raise BackendUnavailable(
        f"{library} reads no weights through links, as {source} has them, and they cannot be copied for it"
        f" ({'. '.join(reasons)}). Free some space, set SDTURBO_CACHE_DIR, or copy the bundle with `cp -rL`."
    )


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, another user's file, or no hard links there
        shutil.copyfile(source, target)
