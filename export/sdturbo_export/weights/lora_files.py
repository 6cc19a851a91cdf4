"""LoRA files as the command line names them, and what a bundle keeps of them. Knows nothing of the weights in them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdturbo.errors import InvalidRequest
from sdturbo.files import sha256_file
from sdturbo_export.weights.peft_settings import settings_beside

# in a directory: PEFT's name, diffusers' name
_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and its strength, any finite number. 1 is as trained."""

    path: Path
    scale: float = 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides what is fused: the file, and PEFT's settings beside it if it leaves them to them."""
        settings = settings_beside(self.path)
        return (self.path, settings) if settings else (self.path,)


def parse_lora(text: str) -> Lora:
    """`file.safetensors` or `file.safetensors:0.8`, or a directory that PEFT or diffusers wrote in the place of the file.

    The path itself may have colons: the file that exists decides.
    Raises InvalidRequest if there is no such file or the scale is not a finite number.
    """
    if file := _file(text):
        return Lora(file)
    path, _, number = text.rpartition(":")
    file = _file(path)
    if not file:
        raise InvalidRequest(
            f"Got LoRA {text!r}: there is no such file. Expected the path of a .safetensors file or of a directory with"
            f" {' or '.join(_FILES)}, followed by :SCALE if the scale is not 1, as in style.safetensors:0.8."
        )
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise InvalidRequest(f"Got scale {number!r} for LoRA {path}. Expected a finite number, as in {path}:0.8.")
    return Lora(file, scale)


def _file(text: str) -> Path | None:
    """The LoRA file at that path."""
    if os.path.isdir(text):  # noqa: PTH112 (False where Path raises: a name that is too long)
        return next((file for name in _FILES if (file := Path(text, name)).is_file()), None)
    return Path(text) if os.path.isfile(text) else None  # noqa: PTH113


def lora_hashes(loras: Sequence[Lora]) -> dict[str, str]:
    """sha256 of each of the LoRAs' files by its path."""
    return {str(file): sha256_file(file) for lora in loras for file in lora.files}


def lora_entries(loras: Sequence[Lora], hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """What a bundle says of its LoRAs. hashes: see `lora_hashes`."""
    entries: list[dict[str, Any]] = []
    for lora in loras:
        file, *settings = (hashes[str(path)] for path in lora.files)
        entry = {"file": lora.path.name, "sha256": file, "scale": lora.scale}
        entries.append(entry | ({"settings_sha256": settings[0]} if settings else {}))
    return entries
