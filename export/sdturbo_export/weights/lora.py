"""LoRA (low-rank adaptation) files fused into weights before export: W + scale·(alpha/rank)·up@down.

The module knows nothing of graphs or bundles. It understands the key names of kohya's sd-scripts, of diffusers (three
generations) and of PEFT, for linear layers and convolutions. PEFT's alpha is read by `peft_settings`.
Names follow diffusers 0.42 (`loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from sdturbo_export.errors import CheckpointError, listed
from sdturbo_export.weights.lora_files import Lora
from sdturbo_export.weights.peft_settings import alpha_over_rank, read_settings, settings_inside

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
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # by the width of the text that cross-attention reads


@dataclass(frozen=True, slots=True)
class _Delta:
    """factor·up@down, to be added to a weight."""

    down: torch.Tensor
    up: torch.Tensor
    factor: float


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
            settings = settings_inside(file.metadata())
    except SafetensorError as error:
        return {}, [f"not a safetensors file ({error}). Pickle (.ckpt, .pt, .bin) is never loaded: convert it first"]
    except OSError as error:
        return {}, [f"cannot be read: {error}"]
    except (ValueError, RecursionError) as error:
        return {}, [f"its lora_adapter_metadata is not JSON: {error}"]
    if not tensors:
        return {}, ["holds no tensors"]
    if not isinstance(settings, dict):
        return {}, ["its lora_adapter_metadata is not a JSON object"]

    deltas: dict[_Target, _Delta] = {}
    faults = _foreign(tensors, weights)
    if beside := lora.files[1:]:
        settings = read_settings(beside[0], faults)
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
                factor = alpha_over_rank(parts.get("alpha"), down.shape[0], target, settings)
                deltas[target] = _Delta(down, up, lora.scale * factor)
            except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
                faults[f"alpha cannot be used ({error})"].append(label)
    return deltas, [f"{fault}: {listed(places, 3)}" for fault, places in faults.items()]


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


def _weight(weights: Weights, target: _Target) -> torch.Tensor:
    component, module = target
    return weights[component][f"{module}.weight"]


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
