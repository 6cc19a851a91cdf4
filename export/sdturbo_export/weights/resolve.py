"""A model's name to a checked checkpoint: "tiny", "small", "seeded", a directory, a file, or a Hub id."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdturbo.bundle.hub_cache import COMMIT, REPOSITORY, SNAPSHOTS, repository_id, snapshot_in
from sdturbo.errors import InvalidRequest
from sdturbo.files import sha256_file
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.autoencoder_tiny import with_decoder
from sdturbo_export.weights.checkpoint import Checkpoint, open_checkpoint
from sdturbo_export.weights.lora_files import Lora
from sdturbo_export.weights.seeded import write_seeded
from sdturbo_export.weights.taesd import decoder_directory
from sdturbo_export.weights.weight_files import HALF_FIRST, PICKLES, WHOLE_FIRST, pickle_fault, single_file

TINY, TINY_CHECKPOINT = "tiny", Path(__file__).parents[1] / "tiny" / "checkpoint"
_SEEDED = re.compile(r"(small|seeded)(?::(\d+))?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENCES = ("LICENSE*", "NOTICE")  # of a directory


def resolve(
    model: str,
    checkpoints: Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    name: str | None = None,
    accept_license: bool = False,
    ask: Callable[[str], bool] | None = None,
    loras: Sequence[Lora] = (),
    decoder: Path | None = None,
) -> Checkpoint:
    """The checkpoint that `model` names.

    "tiny" is the trained toy model that comes with this package. "small" and "seeded", or "small:7" with a seed, are
    drawn once and kept in the folder `checkpoints`. These names win over directories of the same name (write ./tiny). An
    existing directory is read where it is. A safetensors file in the layout of ldm (latent diffusion) is converted once and
    kept in `checkpoints`. Otherwise `owner/name` is downloaded from the Hub at `revision`, after its licence was accepted.
    ask: see `hub.download`.
    variant: of the weight files, "" for those without one. None takes fp16 first from the Hub and its cache, and last
    elsewhere. name: the model's, in the place of the directory's or file's.
    decoder: directory or file of an AutoencoderTiny that takes the place of the checkpoint's own.
    """
    seeded = _SEEDED.fullmatch(model)
    if model == TINY:
        checkpoint = open_checkpoint(TINY_CHECKPOINT, name=TINY, source=TINY, variant=variant)
    elif seeded:
        kind, seed = seeded[1], int(seeded[2] or 0)
        path = checkpoints / f"{kind}-{seed}"
        if not path.exists():
            write_seeded(path, seed=seed, small=kind == "small")
        checkpoint = open_checkpoint(path, name=kind, source=f"{kind}:{seed}", variant=variant)
    elif os.path.isdir(model):  # noqa: PTH112 (False where Path raises: a name that is too long)
        snapshot, fault = snapshot_in(Path(model), "model_index.json")
        if fault is not None:
            raise CheckpointError(model, [fault])
        checkpoint = _local(snapshot, checkpoints, variant)
    elif os.path.isfile(model):  # noqa: PTH113
        checkpoint = _converted(Path(model), checkpoints, variant)
    elif _HUB_ID.fullmatch(model) and not model.startswith("."):
        from sdturbo_export.weights.hub import download

        path = download(model, revision=revision, variant=variant, accept_license=accept_license, ask=ask)
        checkpoint = _local(path, checkpoints, variant)
    elif "/" in model or model.startswith("."):
        raise CheckpointError(model, ["there is no such directory or file, and it is no Hub id (owner/name)"])
    else:
        raise InvalidRequest(
            f"Unknown model {model!r}. Expected tiny, small, seeded, a checkpoint's directory, a safetensors file, or a Hub"
            " id such as stabilityai/sd-turbo."
        )
    checkpoint = dataclasses.replace(checkpoint, loras=tuple(loras), name=name or checkpoint.name)
    if decoder is None:
        return checkpoint
    directory, decoder_variant = decoder_directory(decoder, checkpoints)
    return with_decoder(checkpoint, directory, variant=decoder_variant)


def _local(path: Path, checkpoints: Path, variant: str | None) -> Checkpoint:
    """The checkpoint in a directory. One in the Hub's cache is that of its repository and commit."""
    path = path.absolute()
    repository, is_cached = path.parent.parent, path.parent.name == SNAPSHOTS
    named: dict[str, str | None] = {"name": _name(path)}
    if is_cached and repository.name.startswith(REPOSITORY):
        source = repository_id(repository)
        named = {"name": source.rpartition("/")[2], "source": source, "revision": path.name}
    if file := single_file(path):
        return _converted(file, checkpoints, variant, licence=path, **named)
    order = HALF_FIRST if "source" in named else WHOLE_FIRST
    return open_checkpoint(path, variant=variant, order=order, **named)


def _name(path: Path) -> str:
    """The directory's name, or that of the first directory above it that is no commit."""
    names = [part for part in (path.resolve(), *path.resolve().parents) if not COMMIT.fullmatch(part.name)]
    name = next((part.name for part in names if part.name not in ("", SNAPSHOTS)), path.name)
    return name.rpartition("--")[2] if name.startswith(REPOSITORY) else name


def _converted(
    file: Path,
    checkpoints: Path,
    variant: str | None,
    *,
    licence: Path | None = None,
    name: str | None = None,
    source: str | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint that is made from one file in the layout of ldm (latent diffusion)."""
    from sdturbo_export.weights.single_file import write_converted

    if file.suffix in PICKLES:
        raise CheckpointError(file, [pickle_fault(file.name)])
    if variant is not None:
        raise InvalidRequest(f"Got a variant for {file}. One file has none: leave out --variant.")
    digest = sha256_file(file)
    texts = [text for pattern in LICENCES for text in sorted(licence.glob(pattern))] if licence else []
    key = hashlib.sha256("".join((digest, *map(sha256_file, texts))).encode()).hexdigest()
    path = checkpoints / f"{file.stem}-{key[:16]}"
    if not path.exists():
        write_converted(file, path, licences=texts)
    return open_checkpoint(
        path, name=name or file.stem, source=source or file.name, revision=revision or f"sha256:{digest}"
    )
