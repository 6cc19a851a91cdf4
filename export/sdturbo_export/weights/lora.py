"""LoRA (low-rank adaptation) files fused into weights before export: W + scale·(alpha/rank)·up@down.

The module knows nothing of graphs or bundles. It understands the key names of kohya's sd-scripts, of diffusers (three
generations) and of PEFT, for linear layers and convolutions. PEFT's alpha is in adapter_config.json beside the file.
Names and scaling follow diffusers 0.42 (`loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py`) and PEFT 0.21
(`tuners/lora/layer.py`, `utils/other.py`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdturbo.errors import InvalidRequest
from sdturbo.files import sha256_file
from sdturbo_export.errors import CheckpointError, listed
from sdturbo_export.weights.weight_files import read_json

Weights = Mapping[str, dict[str, torch.Tensor]]
_Target = tuple[str, str]  # component, name of a module in it
_Faults = defaultdict[str, list[str]]  # fault -> places

_KOHYA_PREFIXES = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}
_KEYS = (
    re.compile(r"(?P<module>.+?)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight"),  # PEFT, with or without adapter name
    re.compile(r"(?P<module>.+?)\.lora_(?P<part>down|up)\.weight"),  # kohya
    re.compile(r"(?P<module>.+?)[._]lora(?:_linear_layer)?\.(?P<part>down|up)\.weight"),  # diffusers
    re.compile(r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?)?\.(?P<part>alpha)"),
)
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon in Tucker form",
    "oft_": "OFT",
}
_OTHER_KIND = re.compile(rf".*\.({'|'.join(_OTHER_KINDS)})")
_CROSS_ATTENTION = re.compile(r".*attn2[._]to_[kv]")
_ADAPTER = "adapter_config.json"  # PEFT's, beside the file
_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)  # in a directory: PEFT's name, diffusers' name
_DEFAULTS = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}  # of PEFT's LoraConfig, which a file may leave out
_PEFT_KINDS = {"LOHA": "LoHa", "LOKR": "LoKr"}
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that move a part of the weight to the adapter
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # by the width of the text that cross-attention reads


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and its strength, any finite number. 1 is as trained."""

    path: Path
    scale: float = 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides what is fused: the file, and PEFT's settings beside it."""
        settings = self.path.with_name(_ADAPTER)
        return (self.path, settings) if settings.is_file() else (self.path,)


@dataclass(frozen=True, slots=True)
class _Delta:
    """factor·up@down, to be added to a weight."""

    down: torch.Tensor
    up: torch.Tensor
    factor: float


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


def fuse(loras: Sequence[Lora], weights: Weights) -> None:
    """Replace the entries of `weights` that the LoRAs change by new float32 tensors of the same shape.

    weights: {"unet": state dict, "text_encoder": state dict} with the Hub's names (`text_model.` included). The tensors
    in it are only read. The sum over all LoRAs is taken in float32, in their order, and is not rounded to the dtype of the
    files: in bfloat16 much of a LoRA is smaller than half a step.
    Raises CheckpointError with all faults of all files. Then nothing is changed.
    """
    names = _names(weights)
    faults: list[str] = []
    deltas: dict[_Target, list[_Delta]] = {}
    for lora in loras:
        file_deltas, file_faults = _read(lora, names, weights)
        faults += [f"{lora.path}: {fault}" for fault in file_faults]
        for target, delta in file_deltas.items():
            deltas.setdefault(target, []).append(delta)
    if faults:
        raise CheckpointError("LoRA", faults)
    fused = {target: _add(_weight(weights, target), parts) for target, parts in deltas.items()}
    if overflown := [".".join(target) for target, weight in fused.items() if not weight.isfinite().all()]:
        together = " + ".join(f"{lora.path}:{lora.scale:g}" for lora in loras)
        raise CheckpointError("LoRA", [f"{together}: weights overflow, use smaller scales: {listed(overflown, 3)}"])
    for (component, module), weight in fused.items():
        weights[component][f"{module}.weight"] = weight


def _add(weight: torch.Tensor, deltas: Sequence[_Delta]) -> torch.Tensor:
    total = weight.float()
    for delta in deltas:
        product = delta.up.float().flatten(1) @ delta.down.float().flatten(1)
        total = total + delta.factor * product.view(weight.shape)
    return total


def _names(weights: Weights) -> dict[str, _Target]:
    """Every name that a LoRA file may give to a module of the model."""
    return {
        name: (component, module)
        for component, state in weights.items()
        for key, weight in state.items()
        if key.endswith(".weight") and weight.ndim in (2, 4)
        for module in [key.removesuffix(".weight")]
        for name in _module_names(component, module)
    }


def _module_names(component: str, module: str) -> Iterator[str]:
    # transformers 5 has dropped "text_model." from the names of the text encoder's modules
    for name in (module, module.removeprefix("text_model.")):
        for prefix in _KOHYA_PREFIXES[component]:
            yield prefix + name.replace(".", "_")
        old = re.sub(r"\.([qkv])_proj$", r".to_\1", re.sub(r"\.(to_out\.0|out_proj)$", ".to_out", name))
        for dotted in (name, old):
            yield dotted
            yield f"{component}.{dotted}"


def _read(lora: Lora, names: Mapping[str, _Target], weights: Weights) -> tuple[dict[_Target, _Delta], list[str]]:
    """The file's addition to each module, and its faults."""
    try:
        with safe_open(lora.path, framework="pt") as file:
            tensors: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except SafetensorError as error:
        return {}, [f"not a safetensors file ({error}). Pickle (.ckpt, .pt, .bin) is never loaded: convert it first"]
    except OSError as error:
        return {}, [f"cannot be read: {error}"]
    except (ValueError, RecursionError) as error:
        return {}, [f"its lora_adapter_metadata is not JSON: {error}"]
    if not tensors:
        return {}, ["holds no tensors"]
    if not isinstance(metadata, dict):
        return {}, ["its lora_adapter_metadata is not a JSON object"]

    deltas: dict[_Target, _Delta] = {}
    faults = _foreign(tensors, weights)
    if not metadata and len(lora.files) > 1 and any(".lora_A." in key for key in tensors):
        metadata = _settings(lora.files[1], faults)
    for target, parts in ({} if faults else _sort(tensors, names, faults)).items():
        label, weight, down, up = ".".join(target), _weight(weights, target), parts.get("down"), parts.get("up")
        if down is None or up is None:
            faults["down or up is missing"].append(f"{label} (has only {' and '.join(parts)})")
        elif not _fit(down, up, weight):
            shapes = f"down {_shape(down)}, up {_shape(up)}, weight {_shape(weight)}"
            faults["shapes do not fit this model"].append(f"{label} ({shapes})")
        elif not all(matrix.is_floating_point() and matrix.float().isfinite().all() for matrix in (down, up)):
            faults["values are not finite numbers"].append(label)
        else:
            try:
                factor = _factor(parts.get("alpha"), down.shape[0], target, metadata)
                deltas[target] = _Delta(down, up, lora.scale * factor)
            except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
                faults[f"alpha cannot be used ({error})"].append(label)
    return deltas, [f"{fault}: {listed(places, 3)}" for fault, places in faults.items()]


def _settings(file: Path, faults: _Faults) -> dict[str, Any]:
    """PEFT's settings of an adapter. Those that say more than a LoRA does are faults."""
    read: list[str] = []
    settings = _DEFAULTS | read_json(file, read)
    for fault in read:
        faults["its settings cannot be used"].append(fault)
    kind, start = str(settings["peft_type"]), settings.get("init_lora_weights")
    if kind != "LORA":
        faults[f"{_PEFT_KINDS.get(kind, kind)} is not supported, only LoRA is"].append(file.name)
    if settings.get("use_dora"):
        faults["DoRA is not supported, only LoRA is"].append(file.name)
    if settings.get("fan_in_fan_out"):
        faults["fan_in_fan_out is not supported: this model has no layer with transposed weights"].append(file.name)
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        faults[f"init_lora_weights is {start}, which changed the model too: save it converted to a LoRA"].append(
            file.name
        )
    return settings


def _foreign(tensors: Mapping[str, torch.Tensor], weights: Weights) -> _Faults:
    """The faults that make all others consequences: another kind of adapter, or one for another family of models."""
    faults: _Faults = defaultdict(list)
    width = next((weight.shape[1] for key, weight in weights["unet"].items() if _CROSS_ATTENTION.match(key)), None)
    for key, tensor in tensors.items():
        kind = _OTHER_KIND.match(key)
        if kind:
            faults[f"{_OTHER_KINDS[kind[1]]} is not supported, only LoRA is"].append(key)
        module, part = _parse(key)
        if width and part == "down" and tensor.ndim > 1 and _CROSS_ATTENTION.match(module) and tensor.shape[1] != width:
            family = f"made for {_FAMILIES.get(tensor.shape[1], 'another model')}"
            widths = f"its cross-attention reads text of width {tensor.shape[1]}, this model's {width}"
            faults[f"{family}: {widths}"].append(key)
    return faults


def _sort(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, _Target], faults: _Faults
) -> dict[_Target, dict[str, torch.Tensor]]:
    """The file's tensors by module and part: "down", "up", "alpha"."""
    sorted_: dict[_Target, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = _parse(key)
        target = names.get(module)
        if not part:
            faults["not the name of a LoRA weight"].append(key)
        elif target is None:
            faults["this model has no such module"].append(key)
        elif part in sorted_.setdefault(target, {}):
            faults["given twice"].append(key)
        else:
            sorted_[target][part] = tensor
    return sorted_


def _parse(key: str) -> tuple[str, str]:
    """(module as the file calls it, part), both empty if it is no LoRA key."""
    for pattern in _KEYS:
        match = pattern.fullmatch(key)
        if match:
            module = match["module"].removeprefix("base_model.model.").replace(".processor.", ".")  # PEFT's wrapper
            return module, _PARTS[match["part"]]
    return "", ""


def _fit(down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether up@down has the weight's shape: (r, in) and (out, r), or a convolution (r, in, k, k) and (out, r, 1, 1).

    A kernel of 1×1 counts as none on either side. The projections of SD 2 are linear, but many trainers write them as 1×1.
    """
    rank = down.shape[0] if down.ndim else 0
    fits_in = _without_1x1(down)[1:] == _without_1x1(weight)[1:]
    return rank > 0 and fits_in and _without_1x1(up) == (weight.shape[0], rank)


def _without_1x1(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[:2]) if tensor.shape[2:] == (1, 1) else tuple(tensor.shape)


def _factor(alpha: torch.Tensor | None, rank: int, target: _Target, metadata: Mapping[str, Any]) -> float:
    """alpha/rank. alpha is the file's tensor, or that of PEFT's settings, or the rank.

    Raises ValueError, TypeError, AttributeError, OverflowError or re.error for an alpha that makes no sense.
    """
    component, module = target

    def setting(name: str) -> Any:
        return metadata.get(f"{component}.{name}", metadata.get(name))

    def of_module(patterns: str, name: str) -> Any:
        own = (setting(patterns) or {}).items()
        return next((value for key, value in own if re.match(rf"(.*\.)?({key})$", module)), setting(name))

    divisor = float(rank)
    if alpha is not None:
        if alpha.numel() != 1:
            raise ValueError(f"{alpha.numel()} values instead of one")
        value = alpha.item()
    else:
        value, expected_rank = of_module("alpha_pattern", "lora_alpha"), of_module("rank_pattern", "r")
        if expected_rank not in (None, rank):
            raise ValueError(f"its settings say rank {expected_rank}, its matrices have {rank}")
        if value is not None and setting("use_rslora"):
            divisor = math.sqrt(rank)
    factor = 1.0 if value is None else float(value) / divisor
    if not math.isfinite(factor):
        raise ValueError(f"it is {value}")
    return factor


def _weight(weights: Weights, target: _Target) -> torch.Tensor:
    component, module = target
    return weights[component][f"{module}.weight"]


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
