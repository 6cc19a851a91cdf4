"""A checkpoint in the Hub's diffusers layout: checked against its own configs, hashed, loaded into modules.

Only safetensors are read. Every fault of a checkpoint is reported at once, before any weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdturbo.files import sha256_file
from sdturbo_export.errors import CheckpointError, listed
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.lora import fuse
from sdturbo_export.weights.lora_files import Lora
from sdturbo_export.weights.schedule import Schedule, is_number, schedule_from_config, scheduler_faults
from sdturbo_export.weights.tokenizer_files import tokenizer_faults
from sdturbo_export.weights.weight_files import WHOLE_FIRST, read_json, weight_files

COMPILED = "_orig_mod."  # in the names of tensors of a module that torch.compile wraps
# the defaults of transformers' and diffusers' classes, which a config may leave out
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_encoder": {"vocab_size": 49408, "hidden_size": 512},
    "unet": {"cross_attention_dim": 1280, "in_channels": 4, "out_channels": 4},
    "vae": {"scaling_factor": 0.18215, "latent_channels": 4, "use_quant_conv": True, "use_post_quant_conv": True},
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint. `weights` maps each component to its safetensors files, relative to `path`.

    `loras` are fused, in order, when a module is made. `decoder` is the directory of an AutoencoderTiny that takes the place
    of the autoencoder `vae` (`autoencoder_tiny.with_decoder`). Its files are named decoder/….
    """

    path: Path
    name: str
    source: str
    revision: str | None
    configs: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, tuple[str, ...]]
    loras: tuple[Lora, ...] = ()
    decoder: Path | None = None

    @property
    def schedule(self) -> Schedule:
        return schedule_from_config(self.configs["scheduler"])

    @property
    def decoder_name(self) -> str:
        """The bundle's name for its decoder: "AutoencoderKL", or "AutoencoderTiny" and its directory's name."""
        return f"AutoencoderTiny {self.decoder.resolve().name}" if self.decoder else "AutoencoderKL"

    def file(self, name: str) -> Path:
        """The place of one of `weights`."""
        if self.decoder and name.startswith("decoder/"):
            return self.decoder / name.removeprefix("decoder/")
        return self.path / name

    def float32_size(self, component: str) -> int:
        """Bytes of the component's weights in float32."""
        headers = (entry for name in self.weights[component] for entry in _headers(self.file(name), component))
        return sum(4 * math.prod(shape) for _, (shape, _) in headers)

    def hashes(self) -> dict[str, str]:
        """sha256 of every weight file, by its path in the checkpoint."""
        names = [name for names in self.weights.values() for name in names]
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
            return dict(zip(names, pool.map(lambda name: sha256_file(self.file(name)), names), strict=True))

    def state_dict(self, component: str) -> dict[str, torch.Tensor]:
        """The component's tensors under the Hub's names, memory-mapped."""
        tensors: dict[str, torch.Tensor] = {}
        for name in self.weights[component]:
            tensors |= load_file(self.file(name))
        return {hub_name(component, key): value for key, value in tensors.items() if not _is_buffer(key)}

    def module(self, component: str) -> nn.Module:
        """The component in float32, for inference, with the LoRAs fused into it."""
        fused = ("text_encoder", "unet") if self.loras and component != "vae" else ()
        weights = {name: self.state_dict(name) for name in fused or (component,)}
        if fused:
            fuse(self.loras, weights)
        is_tiny = component == "vae" and self.decoder is not None
        module = empty_module("autoencoder_tiny" if is_tiny else component, self.configs[component])
        prefix = "text_model." if component == "text_encoder" else ""
        named = {key.removeprefix(prefix): value.float() for key, value in weights[component].items()}
        if wrong := [name for name, value in named.items() if not value.isfinite().all()]:
            raise CheckpointError(self.path, [f"{component}: {listed(wrong)} hold NaN or infinite values"])
        module.load_state_dict(named, assign=True)
        for owner in module.modules():  # buffers that no file holds: CLIP's position_ids
            for name, buffer in owner.named_buffers(recurse=False):
                if buffer.is_meta:
                    owner.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
        return module.eval().requires_grad_(requires_grad=False)


def open_checkpoint(
    path: Path,
    *,
    name: str | None = None,
    source: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    order: Sequence[str] = WHOLE_FIRST,
) -> Checkpoint:
    """Check the directory `path` and describe it. variant, order: see `weight_files`.

    Raises CheckpointError with all faults.
    """
    if not path.is_dir():
        raise CheckpointError(path, ["there is no such directory. Expected a checkpoint in diffusers layout"])
    faults: list[str] = []
    index = read_json(path / "model_index.json", faults)
    configs = {name: _DEFAULTS[name] | read_json(path / name / "config.json", faults) for name in COMPONENTS}
    configs["scheduler"] = read_json(path / "scheduler" / "scheduler_config.json", faults)
    faults += tokenizer_faults(path / "tokenizer", configs["text_encoder"]["vocab_size"])
    if faults:
        raise CheckpointError(path, faults)
    faults += _family_faults(index, configs)
    if faults:
        raise CheckpointError(path, faults)
    weights: dict[str, tuple[str, ...]] = {}
    for component in COMPONENTS:
        stem = COMPONENTS[component][1]
        weights[component] = weight_files(path / component, component, stem, faults, variant=variant, order=order)
        files = {name: path / name for name in weights[component]}
        if files:
            faults += tensor_faults(component, component, configs[component], files)
    if faults:
        raise CheckpointError(path, faults)
    return Checkpoint(path, name or path.resolve().name, source or path.resolve().name, revision, configs, weights)


def empty_module(component: str, config: Mapping[str, Any]) -> nn.Module:
    """The component's module on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        if component == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**config))
        if component == "autoencoder_tiny":
            return AutoencoderTiny.from_config(dict(config))
        return (UNet2DConditionModel if component == "unet" else AutoencoderKL).from_config(dict(config))


def expected_shapes(component: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor the component's files must hold, under the Hub's names."""
    state = empty_module(component, config).state_dict()
    return {hub_name(component, name): tuple(tensor.shape) for name, tensor in state.items()}


def hub_name(component: str, name: str) -> str:
    """The name of a tensor in the Hub's files. transformers 5 drops their `text_model.` in memory and when it saves."""
    return f"text_model.{name}" if component == "text_encoder" and not name.startswith("text_model.") else name


def _is_buffer(name: str) -> bool:
    return name.endswith("embeddings.position_ids")  # saved by older transformers, computed by newer ones


def _family_faults(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The faults of a model of another family than SD-Turbo's, in words, before hundreds of tensor names."""
    faults: list[str] = []
    if "text_encoder_2" in index:
        return ["this is an SDXL checkpoint (two text encoders). Expected SD-Turbo's layout with one"]
    width = configs["unet"].get("cross_attention_dim")
    if width == 768:
        faults.append("this is an SD 1.x checkpoint (cross_attention_dim 768). Expected SD-Turbo, an SD 2.1 model")
    elif width != configs["text_encoder"].get("hidden_size"):
        faults.append(
            f"unet: cross_attention_dim is {width}, but the text encoder's hidden_size is"
            f" {configs['text_encoder'].get('hidden_size')}. They must be equal"
        )
    for component, (expected, _) in COMPONENTS.items():
        entry = index.get(component)
        if not isinstance(entry, list) or entry[-1:] != [expected]:
            faults.append(f"model_index.json: {component} is {entry!r}, expected class {expected}")
    if configs["unet"].get("in_channels") != 4 or configs["unet"].get("out_channels") != 4:
        faults.append("unet: in_channels and out_channels must be 4 (not an inpainting or upscaling model)")
    if configs["vae"].get("latent_channels") != 4:
        faults.append(f"vae: latent_channels is {configs['vae'].get('latent_channels')}, expected 4")
    for name in ("use_quant_conv", "use_post_quant_conv"):
        if configs["vae"][name] is not True:
            faults.append(f"vae: {name} is {configs['vae'][name]!r}, expected true as in SD 2.1's autoencoder")
    if not is_number(configs["vae"]["scaling_factor"]):
        faults.append(f"vae: scaling_factor is {configs['vae']['scaling_factor']!r}, expected a number above 0")
    return faults + scheduler_faults(configs["scheduler"])


def tensor_faults(label: str, component: str, config: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """The faults of the tensors in `files`, by their headers: missing, unknown, of another shape or dtype."""
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    faults: list[str] = []
    for name, file in files.items():
        try:
            headers |= dict(_headers(file, component))
        except (SafetensorError, OSError) as error:
            faults.append(f"{name} is not a whole safetensors file: {error}")
    if faults:
        return faults
    faults = shape_faults(label, component, config, {name: shape for name, (shape, _) in headers.items()})
    dtypes = [
        f"{name} has dtype {dtype}" for name, (_, dtype) in headers.items() if dtype not in ("F32", "F16", "BF16")
    ]
    if dtypes:
        faults.append(f"{label}: {len(dtypes)} tensors that are not F32, F16 or BF16: {listed(dtypes)}")
    return faults


def shape_faults(
    label: str, component: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """The faults of tensors with these names and shapes: missing, unknown, of another shape."""
    try:
        expected = expected_shapes(component, config)
    except Exception as error:  # diffusers and transformers raise whatever their constructors meet
        return [f"{label}/config.json describes no model: {error}"]
    if compiled := [name for name in shapes if COMPILED in name]:
        return [f"{label}: {compiled_fault(compiled)}"]
    wrong = {
        "missing tensors": [name for name in expected if name not in shapes],
        "unknown tensors": [name for name in shapes if name not in expected],
        "tensors of another shape": [
            f"{name} has shape {shape}, expected {expected[name]}"
            for name, shape in shapes.items()
            if name in expected and shape != expected[name]
        ],
    }
    return [f"{label}: {len(items)} {what}: {listed(items)}" for what, items in wrong.items() if items]


def compiled_fault(names: Sequence[str]) -> str:
    """The fault of `names`, which have torch.compile's prefix."""
    return (
        f"{len(names)} tensors were saved from a module of torch.compile, such as {names[0]}. Save the module that"
        f" it wraps, or remove {COMPILED} from the names"
    )


def _headers(file: Path, component: str) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            if not _is_buffer(key):
                part = tensors.get_slice(key)
                yield hub_name(component, key), (tuple(part.get_shape()), part.get_dtype())
