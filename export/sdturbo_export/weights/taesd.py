"""TAESD's original files, turned into a directory with diffusers' AutoencoderTiny.

The original is two files, `taesd_encoder.safetensors` and `taesd_decoder.safetensors`, each one nn.Sequential, or one file
with `encoder.` and `decoder.` before the same keys. diffusers numbers the decoder's layers one lower, for its clamp is no
layer. Source: diffusers `scripts/convert_tiny_autoencoder_to_diffusers.py`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sdturbo.files import sha256_file
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.weight_files import PICKLES, pickle_fault, variants
from sdturbo_export.weights.written import new_weights, write_config

_STEM = "diffusion_pytorch_model"
_WEIGHTS = f"{_STEM}.safetensors"
_KEY = re.compile(r"(\d+)\.(conv\.[024]\.|skip\.)?(weight|bias)")
_CLAMP = {"encoder": 0, "decoder": 1}  # layers before the first convolution

Tensors = dict[str, torch.Tensor]


def decoder_directory(path: Path, folder: Path) -> tuple[Path, str | None]:
    """The directory of the AutoencoderTiny at `path`, and the variant of its weights that a file's name chooses.

    `path` is a directory or file in diffusers' layout, or the original's, which are often side by side: a file's name says
    which it is. The original's files are converted once and kept in `folder`. A path to nothing is returned as it is.
    Raises CheckpointError if encoder or decoder is missing or the file is no TAESD, and BuildError if the disk is full.
    """
    if path.is_file() and (path.parent / "config.json").is_file():
        for variant, names in variants(_STEM, [file.name for file in path.parent.iterdir()]).items():
            if path.name in names:
                return path.parent, variant
    if not path.exists() or (path / "config.json").exists():
        return path, None
    files = _files(path)
    parts: dict[str, Tensors] = {"encoder": {}, "decoder": {}}
    for file in files:
        for part, tensors in _parts(file).items():
            parts[part] |= tensors
    if missing := [part for part, tensors in parts.items() if not tensors]:
        other = files[0].name.replace("decoder", "encoder") if missing == ["encoder"] else "the other half's file"
        raise CheckpointError(
            path,
            [
                f"it holds no {' and no '.join(missing)} of a TAESD. Expected both: {other} beside it, or one file of both"
            ],
        )
    digest = hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
    stem = path.name if path.is_dir() else re.sub(r"[_-]?(decoder|encoder)$", "", path.stem)
    out = folder / f"decoder-{digest[:16]}" / (stem or "taesd")
    if not out.exists():
        _write(out, parts, files[0].parent)
    return out, None


def _files(path: Path) -> list[Path]:
    """The original's files: of a directory, or the one named and its other half."""
    if path.is_dir():
        safetensors = sorted(path.glob("*.safetensors"))
        files = [file for file in safetensors if re.search(r"(de|en)coder$", file.stem)]
        if len(files) > 2:
            listed = ", ".join(file.name for file in files)
            raise CheckpointError(
                path, [f"it holds {len(files)} encoders and decoders ({listed}): name the decoder's file"]
            )
        if not files and len(safetensors) != 1:
            raise CheckpointError(path, ["config.json is missing, and it holds no TAESD's encoder and decoder either"])
        return files or safetensors
    if path.suffix in PICKLES:
        raise CheckpointError(path, [pickle_fault(path.name)])
    half = path.with_name(
        re.sub(r"(de|en)coder(?=\.)", lambda match: "encoder" if match[1] == "de" else "decoder", path.name)
    )
    return sorted({path, half}) if half.is_file() else [path]


def _parts(file: Path) -> dict[str, Tensors]:
    """The file's layers by their half, under the original's names. A lone decoder begins with a clamp, which has no weight."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(file, [f"this is not a whole safetensors file: {error}"]) from error
    parts: dict[str, Tensors] = {"encoder": {}, "decoder": {}}
    wrong: list[str] = []
    for key, tensor in tensors.items():
        half, _, name = key.partition(".")
        part, layer = (half, name) if half in parts else ("encoder" if "0.weight" in tensors else "decoder", key)
        if _KEY.fullmatch(layer):
            parts[part][layer] = tensor
        else:
            wrong.append(key)
    if wrong or not tensors or any(len(_convolutions(layers)) < 2 for layers in parts.values() if layers):
        raise CheckpointError(
            file,
            [
                f"this is no TAESD of the original layout: its keys are {', '.join((wrong or list(tensors))[:3]) or 'none'}"
            ],
        )
    return parts


def _write(out: Path, parts: Mapping[str, Tensors], licences: Path) -> None:
    config: dict[str, Any] = {"_class_name": "AutoencoderTiny"}
    tensors: Tensors = {}
    for part, layers in parts.items():
        config |= _config(part, layers)
        for key, tensor in layers.items():
            index, _, rest = key.partition(".")
            tensors[f"{part}.layers.{int(index) - _CLAMP[part]}.{rest}"] = tensor.contiguous()
    with new_weights(out) as partial:
        partial.mkdir()
        write_config(partial, config)
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(partial / "config.json", partial / _WEIGHTS)  # safetensors makes private files
        for text in sorted(path for path in licences.glob("LICENSE*") if path.is_file()):
            shutil.copyfile(text, partial / text.name)


def _convolutions(layers: Tensors) -> list[int]:
    """The layers that are a convolution by themselves, in order."""
    return sorted(
        int(key.partition(".")[0])
        for key, tensor in layers.items()
        if re.fullmatch(r"\d+\.weight", key) and tensor.ndim == 4
    )


def _config(part: str, layers: Tensors) -> dict[str, Any]:
    """What the shapes say. A stage is a convolution of its own and the blocks up to the next one."""
    order = sorted({int(key.partition(".")[0]) for key in layers})
    convolutions = _convolutions(layers)
    counts = [sum(first < i < last for i in order) for first, last in pairwise(convolutions)]
    inner = [layers[f"{i}.weight"] for i in (convolutions[1:] if part == "decoder" else convolutions[:-1])]
    first, last = (layers[f"{i}.weight"] for i in (convolutions[0], convolutions[-1]))
    widths = [weight.shape[1 if part == "decoder" else 0] for weight in inner]
    sides = ("latent_channels", "out_channels") if part == "decoder" else ("in_channels", "latent_channels")
    ends = {sides[0]: first.shape[1], sides[1]: last.shape[0]}
    return ends | {f"num_{part}_blocks": counts, f"{part}_block_out_channels": widths}
