"""Checkpoints with weights drawn from a seed: SD-Turbo's size and configs to the byte, small for tests, or TAESD's decoder.

They draw texture, not pictures. They are for measuring speed, memory and parity without a download.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdturbo_export.weights.checkpoint import expected_shapes
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.written import new_weights, sd_turbo_config, write_config, write_configs, write_tensors

# changes of the small checkpoint to SD-Turbo's configs. Classes, stages and 512×512 are the same.
SMALL = {
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
    "unet": {
        "attention_head_dim": [1, 2, 2, 2],
        "block_out_channels": [32, 64, 64, 64],
        "cross_attention_dim": 64,
        "layers_per_block": 1,
    },
    "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
}
# TAESD's config for Stable Diffusion, the defaults of diffusers' class
TAESD: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
LICENCE = (
    "The weights of this checkpoint are pseudo-random numbers drawn by sdturbo. They are licensed under Apache-2.0.\n"
)


def write_seeded(out: Path, *, seed: int = 0, small: bool = False, fp16: bool = False) -> Path:
    """Write a checkpoint in the Hub's layout to the new directory `out` and return it.

    seed: another seed gives other weights. small: a few million parameters instead of 1.29 billion. fp16: the weights as
    the `fp16` variant. Weights have variance 1/fan_in, norms lie around 1, so that activations stay near unit variance.
    """
    with new_weights(out) as partial:
        _write(partial, seed, small=small, fp16=fp16)
    return out


def write_seeded_taesd(out: Path, *, seed: int = 0, fp16: bool = False) -> Path:
    """Write an AutoencoderTiny of TAESD's size to the new directory `out` and return it. seed, fp16: as in `write_seeded`."""
    with new_weights(out) as partial:
        partial.mkdir()
        write_config(partial, TAESD)
        (partial / "LICENSE.md").write_text(LICENCE)
        weights = _draw("autoencoder_tiny", TAESD, seed, torch.float16 if fp16 else torch.float32)
        write_tensors(partial, "vae", weights, variant="fp16" if fp16 else None)
    return out


def _write(directory: Path, seed: int, *, small: bool, fp16: bool) -> None:
    write_configs(directory)
    (directory / "LICENSE.md").write_text(LICENCE)
    for component in COMPONENTS:
        config = sd_turbo_config(component)
        if small:
            config |= SMALL[component]
            write_config(directory / component, config)
        weights = _draw(component, config, seed, torch.float16 if fp16 else torch.float32)
        write_tensors(directory / component, component, weights, variant="fp16" if fp16 else None)


def _draw(component: str, config: Mapping[str, Any], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator()
    weights: dict[str, torch.Tensor] = {}
    for name, shape in expected_shapes(component, config).items():
        generator.manual_seed(zlib.crc32(f"{seed}/{component}/{name}".encode()))
        if len(shape) > 1:  # an embedding's rows are unit normal in variance, a product's output too
            bound = math.sqrt(3) if "embedding" in name and "time" not in name else math.sqrt(3 / math.prod(shape[1:]))
            tensor = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        else:
            tensor = torch.empty(shape).uniform_(-0.1, 0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                tensor += 1
        weights[name] = tensor.to(dtype)
    return weights
