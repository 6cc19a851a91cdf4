"""An autoencoder in the style of TAESD (tiny autoencoder for Stable Diffusion) in the place of the checkpoint's own.

It is a directory in the Hub's layout with diffusers' AutoencoderTiny. As in diffusers' pipelines it gets
latents / scaling_factor, of its own config (1.0). Its encoder gives the latents themselves. There is no posterior to draw
from, so image-to-image draws one noise, not two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.checkpoint import Checkpoint, tensor_faults
from sdturbo_export.weights.schedule import is_number
from sdturbo_export.weights.weight_files import read_json, weight_files

FACTOR = 8  # pixels of a side per latent
# the defaults of diffusers' class, which a config may leave out
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
}


def with_decoder(checkpoint: Checkpoint, directory: Path, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint with the AutoencoderTiny of `directory` as its decoder and encoder. variant: see `weight_files`.

    Raises CheckpointError with all faults. There may be no such directory, another class, other channels, other tensors.
    """
    if not directory.is_dir():
        raise CheckpointError(
            directory,
            ["there is no such directory or file. Expected one with config.json and safetensors of an AutoencoderTiny"],
        )
    faults: list[str] = []
    config = _DEFAULTS | read_json(directory / "config.json", faults)
    faults = faults or _config_faults(config)
    if faults:
        raise CheckpointError(directory, faults)
    names = weight_files(directory, "decoder", "diffusion_pytorch_model", faults, variant=variant)
    replaced = dataclasses.replace(
        checkpoint,
        configs={**checkpoint.configs, "vae": config},
        weights={**checkpoint.weights, "vae": names},
        decoder=directory,
    )
    if names:
        faults += tensor_faults("decoder", "autoencoder_tiny", config, {name: replaced.file(name) for name in names})
    if faults:
        raise CheckpointError(directory, faults)
    return replaced


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    if (class_name := config.get("_class_name")) != "AutoencoderTiny":
        return [f"config.json describes {class_name or 'no class'}, expected AutoencoderTiny, as in TAESD"]
    faults: list[str] = []
    if config["latent_channels"] != 4:
        faults.append(
            f"latent_channels is {config['latent_channels']}, but SD-Turbo's latents have 4: this autoencoder belongs to"
            " another family of models"
        )
    faults += [
        f"{name} is {config[name]!r}, expected 3 for RGB"
        for name in ("in_channels", "out_channels")
        if config[name] != 3
    ]
    for name, base in (("num_encoder_blocks", 2), ("num_decoder_blocks", config["upsampling_scaling_factor"])):
        blocks = config[name]
        if not isinstance(blocks, list) or not isinstance(base, int) or base ** (len(blocks) - 1) != FACTOR:
            faults.append(f"{name} {blocks!r} with a factor of {base!r} each give no scale of {FACTOR}, SD-Turbo's")
    if not is_number(config["scaling_factor"]):
        faults.append(f"scaling_factor is {config['scaling_factor']!r}, expected a number above 0")
    return faults
