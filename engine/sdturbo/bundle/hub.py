"""A bundle from the Hugging Face Hub, into the cache of huggingface_hub: its description, then the files that are needed.

huggingface_hub is imported when it is used. It reads settings of its own: HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, ….
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sdturbo.bundle.bundle import Bundle
from sdturbo.bundle.description import MANIFEST
from sdturbo.bundle.hub_cache import COMMIT
from sdturbo.bundle.hub_errors import hub_errors, require_hub
from sdturbo.bundle.manifest import check_size
from sdturbo.errors import BundleError, HubError, InvalidRequest

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+@=,#-]*")  # it becomes a path in the cache
_FOLDERS = ("build", "bundles", "checkpoints", "data", "engines", "models", "out")  # of this project and others like it

log = logging.getLogger("sdturbo")


def hub_id(path: str | Path, revision: str | None) -> str | None:
    """The id of the repository on the Hub that `path` names, None for a directory.

    Whatever is on the disk under that name wins. Without a revision, so does a path into something that is there.
    A path into one of `_FOLDERS` is never a name on the Hub, where a stranger may own it.
    Raises InvalidRequest for a revision of something else, BundleError for such a path that leads nowhere.
    """
    if revision is not None and not _is_revision(revision):
        raise InvalidRequest(
            f"Got revision {revision!r}. Expected a branch, a tag or a commit (40 hex digits) of the Hub."
        )
    if not isinstance(path, str) or os.path.lexists(path) or not _is_id(path):
        if revision is not None:
            raise InvalidRequest(
                f"Got revision {revision!r} for {path}. A directory has none: leave it out, or name owner/name on the Hub."
            )
        return None
    owner = path.partition("/")[0]
    if revision is None and os.path.lexists(owner):
        fault = f"there is no such directory in {owner}. For the repository {path} on the Hub, give a revision, such as main"
        raise BundleError(path, [fault])
    return path


def fetch(repo_id: str, revision: str | None, needed: Callable[[Bundle], Collection[str]]) -> tuple[Path, list[str]]:
    """(The bundle's directory in the cache, the names of the files that were needed and asked for).

    Nothing is requested for a commit whose files are there. Without a connection, the cached state of a branch is taken.
    revision: None is the branch main. needed: the files of a bundle, of which the manifest alone is there.
    Raises BundleError if the repository holds no bundle, HubError with the reason, BackendUnavailable without the library.
    """
    absent = f"There is no directory {repo_id}"
    require_hub(f"{absent}. To fetch the bundle of that name from the Hub, sdturbo")
    name = repo_id if revision is None else f"{repo_id}@{revision}"
    if revision is None:
        log.warning("there is no directory %s here: fetching %s from the Hugging Face Hub", repo_id, repo_id)
    with hub_errors(f"{absent}, and the bundle {name} cannot be fetched from the Hub"):
        from huggingface_hub import (
            HfApi,
            get_hf_file_metadata,  # pyright: ignore[reportUnknownVariableType]
            hf_hub_download,  # pyright: ignore[reportUnknownVariableType] (of its progress bars)
            hf_hub_url,
            snapshot_download,  # pyright: ignore[reportUnknownVariableType]
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        try:
            if not isinstance(try_to_load_from_cache(repo_id, MANIFEST, revision=revision), str):
                size = get_hf_file_metadata(hf_hub_url(repo_id, MANIFEST, revision=revision)).size
                check_size(name, size or 0)
            manifest = hf_hub_download(repo_id, MANIFEST, revision=revision)
        except RemoteEntryNotFoundError as error:
            files = HfApi().list_repo_files(repo_id, revision=revision)
            raise BundleError(name, [_other_content(repo_id, files)]) from error
        root = Path(manifest).parent
        bundle = Bundle.described(root)
        names = sorted(needed(bundle))
        if missing := [name for name in names if not (root / name).is_file()]:
            sizes = {
                info.path: info.size
                for info in HfApi().get_paths_info(repo_id, missing, revision=root.name)
                if isinstance(info, RepoFile)
            }
            if faults := _listing_faults(bundle, missing, sizes):
                raise BundleError(name, faults)
            snapshot_download(repo_id, revision=root.name, allow_patterns=[glob.escape(name) for name in missing])
            # without a connection, some versions of the library take what is there
            if lacking := [name for name in missing if not (root / name).is_file()]:
                raise HubError(
                    f"{absent}, and the bundle {name} was fetched in part: {root} lacks {', '.join(lacking)}. Check the"
                    " connection and that HF_HUB_OFFLINE is not set, then try again."
                )
    return root, names


def _listing_faults(bundle: Bundle, names: Collection[str], sizes: Mapping[str, int]) -> list[str]:
    """The differences of those files between the bundle's manifest and the repository. sizes: of the latter, in bytes."""
    faults: list[str] = []
    for name in names:
        expected = bundle.files[name][1]
        if name not in sizes:
            faults.append(f"the repository lacks {name}, which its {MANIFEST} lists")
        elif sizes[name] != expected:
            faults.append(f"{name} has {sizes[name]} bytes in the repository, expected {expected}: it was not fetched")
    return [*faults, "ask the repository's owner to push the bundle again"] if faults else []


def _other_content(repo_id: str, files: Collection[str]) -> str:
    """The fault of a repository that holds something else."""
    is_checkpoint = any(name == "model_index.json" or name.endswith(".safetensors") for name in files)
    if is_checkpoint:
        return (
            f"it holds a checkpoint, not a bundle. `sdturbo-export build --model {repo_id} --out DIRECTORY` makes a bundle of"
            " it"
        )
    return f"it holds no {MANIFEST}. Name a repository that `sdturbo-export push` wrote"


def _is_id(path: str) -> bool:
    return _ID.fullmatch(path) is not None and path.partition("/")[0].lower() not in _FOLDERS


def is_pinned(revision: str | None) -> bool:
    """Whether the revision is a commit, whose files never change."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def _is_revision(value: object) -> bool:
    return isinstance(value, str) and _REVISION.fullmatch(value) is not None
