"""Weights from the Hugging Face Hub: one pinned revision, the files that it has, and only after the licence was accepted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (httpx's, or httpx2's in newer versions)
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from sdturbo.bundle.hub_errors import reason
from sdturbo.errors import InvalidRequest
from sdturbo.files import sha256_file
from sdturbo_export.errors import BuildError, CheckpointError, LicenceNotAccepted
from sdturbo_export.weights.file_names import COMPONENTS, ONE_FILE, VOCABULARY_FILES
from sdturbo_export.weights.weight_files import HALF_FIRST, choose, variants

SD_TURBO = "stabilityai/sd-turbo"
SD_TURBO_REVISION = "b261bac6fd2cf515557d5d0707481eafa0485ec2"
SD_TURBO_SHA256 = {  # at that revision, variant fp16
    "unet/diffusion_pytorch_model.fp16.safetensors": "40ec400881e27d1376c7c95c5bd495f407b33756e80eb6365e301c33a07af6e5",
    "vae/diffusion_pytorch_model.fp16.safetensors": "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a",
    "text_encoder/model.fp16.safetensors": "bc1827c465450322616f06dea41596eac7d493f4e95904dcb51f0fc745c4e13f",
}

_INDEX = "model_index.json"
_CONFIGS = (_INDEX, "scheduler/scheduler_config.json", *(f"{name}/config.json" for name in COMPONENTS))
_TOKENIZER, _LICENCE = ("tokenizer/*.json", "tokenizer/merges.txt"), ("LICENSE*", "NOTICE")
_COMMUNITY_LICENCE = (
    "under the Stability AI Community License (https://stability.ai/license). Commercial use needs registration, and the"
    " licence ends above USD 1M of yearly revenue. Conditions hold if you pass on the weights, an engine made from them or a"
    " service that uses them: supply the licence text, keep Stability AI's copyright notice and show"
    ' "Powered by Stability AI"'
)
_OTHER_WAYS = (
    "Or pass the directory of a checkpoint that is already here, or MODEL=seeded to measure speed and parity without"
    " any download."
)


def download(
    repo_id: str,
    *,
    revision: str | None,
    variant: str | None = None,
    accept_license: bool,
    ask: Callable[[str], bool] | None,
) -> Path:
    """The directory of a checkpoint inside the Hub's cache: in diffusers' layout, or with one file in latent diffusion's.

    revision: a commit, 40 hex digits. None stands for the known one of stabilityai/sd-turbo. variant: the middle of the
    weight files' names, "" for none (stabilityai/sd-turbo has float16 as "fp16" and float32 as ""). None takes fp16
    where it is there. ask: puts a question to the user. It is called unless `accept_license`, before any request to the
    network.

    Raises InvalidRequest for unusable arguments, LicenceNotAccepted, BuildError if the download fails, and
    CheckpointError if files are missing or altered.
    """
    revision = _pinned(repo_id, revision)
    if variant is not None and not re.fullmatch(r"\w*", variant):
        raise InvalidRequest(f"Got variant {variant!r}. Expected a word such as fp16, or none.")
    _check_licence(repo_id, accept_license, ask)
    path = _snapshot(repo_id, revision)
    _, faults = _wanted(_files(path), HALF_FIRST[0] if variant is None else variant)
    if faults:
        try:
            faults = _fetch(repo_id, revision, variant)
        except (OSError, HTTPError, RuntimeError) as error:  # hf_xet, the Hub's transfer library, raises RuntimeError
            _, faults = _wanted(_files(path), variant)
            if faults:
                raise BuildError(f"{repo_id}@{revision} cannot be downloaded: {reason(error)} {_OTHER_WAYS}") from error
    if not faults and (repo_id, revision) == (SD_TURBO, SD_TURBO_REVISION) and variant in (None, "fp16"):
        faults = _altered(path)
    if faults:
        raise CheckpointError(f"{repo_id}@{revision} in {path}", faults)
    return path


def _snapshot(repo_id: str, revision: str) -> Path:
    """Where the Hub's cache has the revision, or would have it."""
    return Path(HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "snapshots", revision)


def _files(directory: Path) -> list[str]:
    return [file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()]


def _fetch(repo_id: str, revision: str, variant: str | None) -> list[str]:
    """Download what is not here yet. The faults of a revision that lacks files, of which nothing is downloaded."""
    wanted, faults = _wanted(HfApi().list_repo_files(repo_id, revision=revision), variant)
    if not faults:
        snapshot_download(repo_id, revision=revision, allow_patterns=wanted)
    return faults


def _wanted(names: Collection[str], variant: str | None) -> tuple[list[str], list[str]]:
    """The files of a checkpoint among a repository's `names`, and the faults of what is not there."""
    licences = [name for name in names if any(fnmatch(name, pattern) for pattern in _LICENCE)]
    single = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if _INDEX not in names and len(single) == 1:
        return [*single, *licences], []
    tokenizer = [name for name in names if any(fnmatch(name, pattern) for pattern in _TOKENIZER)]
    wanted = [*_CONFIGS, *licences, *tokenizer]
    faults = [f"{name} is missing" for name in _CONFIGS if name not in names]
    if f"tokenizer/{ONE_FILE}" not in names:
        faults += [f"tokenizer/{name} is missing" for name in VOCABULARY_FILES if f"tokenizer/{name}" not in names]
    for component, (_, stem) in COMPONENTS.items():
        inside = [name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")]
        offered = variants(stem, inside)
        chosen, fault = choose(component, offered, variant, HALF_FIRST)
        files = offered.get(chosen, ())
        wanted += [f"{component}/{name}" for name in files]
        faults += [fault] if fault else [f"{component}: shards are missing"] if _is_partial(files) else []
    return wanted, faults


def _is_partial(files: Sequence[str]) -> bool:
    """Whether these are an index and not all of its shards, whose names end with -of-COUNT.safetensors."""
    index, *shards = files
    counts = {int(shard.removesuffix(".safetensors").rpartition("-of-")[2]) for shard in shards}
    return index.endswith(".json") and counts != {len(shards)}


def _pinned(repo_id: str, revision: str | None) -> str:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidRequest(f"{error} Expected owner/name of a model on the Hub, or an existing directory.") from error
    if revision is None and repo_id == SD_TURBO:
        return SD_TURBO_REVISION
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        came = f"Got revision {revision!r} for {repo_id}." if revision else f"There is no directory {repo_id}."
        raise InvalidRequest(
            f"{came} A model on the Hub needs --revision with a commit, 40 hex digits: branches and tags move."
            f" https://huggingface.co/{repo_id}/commits/main lists the commits."
        )
    return revision


def _check_licence(repo_id: str, accept_license: bool, ask: Callable[[str], bool] | None) -> None:
    if accept_license:
        return
    if repo_id.lower().startswith("stabilityai/"):
        terms = f"{repo_id} is {_COMMUNITY_LICENCE}."
    else:
        terms = f"{repo_id} is under its own licence: read https://huggingface.co/{repo_id}."
    if ask is None or not ask(f"{terms} Do you accept this licence?"):
        raise LicenceNotAccepted(f"{terms} Nothing was downloaded. To accept the licence, pass --accept-license.")


def _altered(path: Path) -> list[str]:
    digests = {name: sha256_file(path / name) if (path / name).is_file() else "none" for name in SD_TURBO_SHA256}
    return [
        f"{name} has SHA-256 {digests[name]}, expected {expected}: delete {path.parent.parent} and download again"
        for name, expected in SD_TURBO_SHA256.items()
        if digests[name] != expected
    ]
