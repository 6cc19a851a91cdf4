"""One safetensors file in the layout of ldm (latent diffusion), CompVis' first code, as Civitai and ComfyUI have them.

It becomes a checkpoint in diffusers' layout by diffusers' own conversion. The file says nothing of heads, scheduler or
prediction, so it is read as SD-Turbo's architecture, that of SD 2.1. The numbers of layers are read off its keys.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
    is_clip_model,
)
from safetensors import SafetensorError, safe_open

from sdturbo_export.errors import CheckpointError, listed
from sdturbo_export.weights.checkpoint import COMPILED, compiled_fault, empty_module, shape_faults
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.written import new_weights, sd_turbo_config, write_config, write_configs, write_tensors

_PREFIXES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("cond_stage_model.",),
    "unet": (LDM_UNET_KEY,),
    "vae": tuple(LDM_VAE_KEYS),
}
_FIRST = f"{LDM_UNET_KEY}input_blocks.0.0.weight"  # the UNet's first convolution
_WORDS = {"text_encoder": "text encoder", "unet": "UNet", "vae": "autoencoder"}
_FAMILIES = {
    768: "SD 1.x",
    1280: "the SDXL refiner",
    2048: "SDXL",
}  # by the width of the text that cross-attention reads
_INPUTS = {
    5: "depth",
    7: "upscaling",
    8: "editing (InstructPix2Pix)",
    9: "inpainting",
}  # by the channels of the UNet's input
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Tensors = dict[str, torch.Tensor]


def write_converted(file: Path, out: Path, *, licences: Sequence[Path] = ()) -> None:
    """Write the checkpoint of `file` in diffusers' layout to the new directory `out`. The numbers are not changed.

    licences: texts that the checkpoint gets a copy of.
    Raises CheckpointError with all faults of the file, before anything is written, and BuildError if the disk is full.
    """
    header = _header(file)
    configs, faults = _configs(header)
    for component in COMPONENTS if not faults else ():
        part = {key: tensor for key, tensor in header.items() if key.startswith(_PREFIXES[component])}
        faults += _part_faults(component, part, configs[component])
    if faults:
        raise CheckpointError(file, faults)
    with new_weights(out) as partial:
        write_configs(partial)
        for component, config in configs.items():
            with safe_open(file, framework="pt") as opened:
                keys = [key for key in header if key.startswith(_PREFIXES[component])]
                converted = _convert(component, {key: opened.get_tensor(key) for key in keys}, config)
            write_config(partial / component, config)
            tensors = {name: tensor.contiguous() for name, tensor in converted.items()}
            write_tensors(partial / component, component, tensors)
        for text in licences:
            shutil.copyfile(text, partial / text.name)


def _header(file: Path) -> Tensors:
    """The file's tensors on the meta device: names, shapes and dtypes, no memory."""
    try:
        with safe_open(file, framework="pt") as opened:
            parts = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (safe_open is no mapping)
            return {
                key: torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
                for key, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(file, [f"this is not a whole safetensors file: {error}"]) from error


def _configs(header: Tensors) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The components' configs, and the faults of a file that is no whole SD 2.1 model, in words."""
    configs = {component: sd_turbo_config(component) for component in COMPONENTS}
    if compiled := [key for key in header if COMPILED in key]:
        return configs, [compiled_fault(compiled)]
    absent = [component for component in COMPONENTS if not any(key.startswith(_PREFIXES[component]) for key in header)]
    if kind := _kind(header, configs["unet"]["cross_attention_dim"], has_unet="unet" not in absent):
        return configs, [f"this is {kind}. Expected SD-Turbo or a model made from it, of SD 2.1's architecture"]
    faults = [f"there is no {_WORDS[name]} in it (no keys {' or '.join(_PREFIXES[name])}…)" for name in absent]
    first = header.get(_FIRST, torch.empty(0, 4, 0, 0))
    channels = first.shape[1] if first.ndim == 4 else None
    if channels is None:
        faults.append(f"{_FIRST} has shape {tuple(first.shape)}, expected the four dimensions of a convolution")
    elif channels != 4:
        faults.append(
            f"its UNet takes {channels} channels, expected 4: this is a model for {_INPUTS.get(channels, 'other inputs')}"
        )
    if "v_pred" in header:
        faults.append("its key v_pred marks a model that predicts v. SD-Turbo predicts the noise")
    if not faults:
        blocks = _count(header, rf"{re.escape(LDM_UNET_KEY)}input_blocks\.(\d+)\.")
        configs["unet"]["layers_per_block"] = max(blocks // len(configs["unet"]["block_out_channels"]) - 1, 1)
        down = [_count(header, rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\.") for prefix in LDM_VAE_KEYS]
        configs["vae"]["layers_per_block"] = max(*down, 1)
        try:
            text = _convert("text_encoder", header, configs["text_encoder"])
        except ValueError as error:
            return configs, [str(error)]
        configs["text_encoder"]["num_hidden_layers"] = _count(text, r"text_model\.encoder\.layers\.(\d+)\.")
    return configs, faults


def _kind(header: Tensors, expected_width: int, *, has_unet: bool) -> str:
    """What the file is if no SD 2.1 model, or nothing."""
    if any(".lora_" in key or key.startswith("lora_") for key in header):
        return "a LoRA, which --lora takes"
    projections = (tensor for key, tensor in header.items() if key.endswith("attn2.to_k.weight"))
    width = next((tensor.shape[1] for tensor in projections if tensor.ndim == 2), None)
    if has_unet and width == expected_width:
        return ""
    if width in _FAMILIES:
        return _FAMILIES[width]
    try:
        inferred = infer_diffusers_model_type(header)
    except IndexError:  # it reads shapes without a look at their length
        inferred = "v1"
    if inferred not in ("v1", "v2"):  # v1 is its answer to what it does not know
        return f"a model of another family (diffusers calls it {inferred})"
    if has_unet:
        return f"a UNet that reads text of {f'width {width}' if width else 'no width'}, SD 2.1's is {expected_width}"
    if any(key.startswith("model_ema.") for key in header):
        return "the moving average of a training alone, without the weights themselves"
    return ""


def _part_faults(component: str, part: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The faults of a component's tensors, by their names in diffusers' layout. part: on the meta device."""
    label = _WORDS[component]
    try:
        converted = _convert(component, part, config)
    except ValueError as error:
        return [str(error)]
    if wrong := [name for name, tensor in converted.items() if tensor.dtype == torch.uint8]:
        return [f"{label}: {len(wrong)} tensors that are not F32, F16 or BF16: {listed(wrong)}"]
    faults = shape_faults(label, component, config, {name: tuple(tensor.shape) for name, tensor in converted.items()})
    taken = {id(tensor) for tensor in converted.values()}
    if component == "unet" and (rest := [key for key, tensor in part.items() if id(tensor) not in taken]):
        faults.append(f"{label}: {len(rest)} tensors have no place in SD 2.1's: {listed(rest)}")
    return faults


def _convert(component: str, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The component's tensors under diffusers' names. Raises ValueError for tensors that cannot be converted."""
    try:
        return _by_diffusers(component, tensors, config)
    except Exception as error:  # the converters raise whatever the tensors make them meet
        raise ValueError(
            f"{_WORDS[component]}: its tensors cannot be converted: {type(error).__name__}: {error}"
        ) from error


def _by_diffusers(component: str, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    if component == "unet":
        return convert_ldm_unet_checkpoint(tensors, config)
    if component == "vae":
        return convert_ldm_vae_checkpoint(tensors, config)
    if is_clip_model(tensors):
        named: Tensors = convert_ldm_clip_checkpoint(tensors)
        return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}
    return convert_open_clip_checkpoint(empty_module("text_encoder", config), tensors)


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the pattern's group takes."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
