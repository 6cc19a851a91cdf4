"""Checkpoints in the Hub's layout that this package writes: SD-Turbo's configs, tokenizer and scheduler, other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sdturbo_export.errors import BuildError
from sdturbo_export.exchange import new_directory
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.tokenizer_files import write_tokenizer


@contextmanager
def new_weights(out: Path) -> Generator[Path]:
    """As `new_directory`. Raises BuildError if it cannot be written."""
    try:
        with new_directory(out) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # its text is a list of copies
        raise BuildError(
            f"Cannot write the checkpoint {out}: {reason}. Free some space or choose another place."
        ) from error


def write_configs(directory: Path) -> None:
    """Write SD-Turbo's configs, scheduler and tokenizer, byte for byte, to the new `directory`."""
    with as_file(files("sdturbo_export").joinpath("configs/sd-turbo")) as configs:
        shutil.copytree(configs, directory)
    write_tokenizer(directory / "tokenizer")


def sd_turbo_config(component: str) -> dict[str, Any]:
    """SD-Turbo's config of the component."""
    file = files("sdturbo_export").joinpath(f"configs/sd-turbo/{component}/config.json")
    return json.loads(file.read_bytes())


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json in the form of the Hub's files."""
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(
    directory: Path, component: str, tensors: Mapping[str, torch.Tensor], *, variant: str | None = None
) -> None:
    """Write the component's weights beside its config in `directory`, with the access rights of that."""
    infix = f".{variant}" if variant else ""
    target = directory / f"{COMPONENTS[component][1]}{infix}.safetensors"
    save_file(dict(tensors), target, metadata={"format": "pt"})
    shutil.copymode(directory / "config.json", target)  # safetensors makes private files
