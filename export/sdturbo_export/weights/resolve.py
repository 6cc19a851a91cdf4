"""A model's name to a checked checkpoint: "tiny", "small", "seeded", a directory, or a Hub id."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdturbo.errors import InvalidRequest
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.autoencoder_tiny import with_decoder
from sdturbo_export.weights.checkpoint import Checkpoint, open_checkpoint
from sdturbo_export.weights.lora import Lora
from sdturbo_export.weights.seeded import write_seeded

TINY, TINY_CHECKPOINT = "tiny", Path(__file__).parents[1] / "tiny" / "checkpoint"
_SEEDED = re.compile(r"(small|seeded)(?::(\d+))?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(
    model: str,
    checkpoints: Path,
    *,
    revision: str | None = None,
    accept_license: bool = False,
    ask: Callable[[str], bool] | None = None,
    loras: Sequence[Lora] = (),
    decoder: Path | None = None,
) -> Checkpoint:
    """The checkpoint that `model` names.

    "tiny" is the trained toy model that comes with this package. "small" and "seeded", or "small:7" with a seed, are
    drawn once and kept in the folder `checkpoints`. These names win over directories of the same name (write ./tiny). An
    existing directory is read where it is. Otherwise `owner/name` is downloaded from the Hub at `revision`, after its licence
    was accepted. ask: see `hub.download`.
    decoder: directory of an AutoencoderTiny that takes the place of the checkpoint's own.
    """
    seeded = _SEEDED.fullmatch(model)
    if model == TINY:
        checkpoint = open_checkpoint(TINY_CHECKPOINT, name=TINY, source=TINY)
    elif seeded:
        kind, seed = seeded[1], int(seeded[2] or 0)
        path = checkpoints / f"{kind}-{seed}"
        if not path.exists():
            write_seeded(path, seed=seed, small=kind == "small")
        checkpoint = open_checkpoint(path, name=kind, source=f"{kind}:{seed}")
    elif os.path.isdir(model):  # noqa: PTH112 (False where Path raises: a name that is too long)
        checkpoint = open_checkpoint(Path(model))
    elif os.path.isfile(model):  # noqa: PTH113
        raise CheckpointError(model, ["this is a file. Expected a directory in diffusers layout"])
    elif _HUB_ID.fullmatch(model) and not model.startswith("."):
        from sdturbo_export.weights.hub import download

        path = download(model, revision=revision, accept_license=accept_license, ask=ask)
        checkpoint = open_checkpoint(path, name=model.split("/")[1], source=model, revision=path.name)
    elif "/" in model or model.startswith("."):
        raise CheckpointError(model, ["there is no such directory, and it is no Hub id (owner/name)"])
    else:
        raise InvalidRequest(
            f"Unknown model {model!r}. Expected tiny, small, seeded, a checkpoint's directory, or a Hub id such as"
            " stabilityai/sd-turbo."
        )
    checkpoint = dataclasses.replace(checkpoint, loras=tuple(loras))
    return with_decoder(checkpoint, decoder) if decoder else checkpoint
