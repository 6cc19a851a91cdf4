"""The configs of `tiny`: SD-Turbo's own, with less of everything. Same classes, same stages, same 512 x 512."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

WIDTH = 64  # of the text embeddings

CHANGES: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": WIDTH,
    },
    # no attention among 64 x 64 and 32 x 32 positions, which would be a quarter of the work or more, for little
    "unet": {
        "attention_head_dim": [1, 2, 3, 4],  # heads per level, 32 channels each. diffusers' name is misleading.
        "block_out_channels": [32, 64, 96, 128],
        "cross_attention_dim": WIDTH,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": 1,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    },
    # most of a decoder's work is at 512 x 512 and 256 x 256, where 16 channels must do
    "vae": {
        "block_out_channels": [16, 16, 32, 64],
        "layers_per_block": 1,
        "mid_block_add_attention": False,  # a seventh of the time, for pictures that need none
        "norm_num_groups": 8,
        "sample_size": 512,
        "scaling_factor": 1.0,  # latents are normalised in quant_conv and post_quant_conv
    },
    # x0 itself. An error of epsilon would weigh 14.6 times at sigma 14.6. At small sigma the noise would have to pass through
    # a network that at first learns to ignore it.
    "scheduler": {"prediction_type": "sample"},
}
FILES = {component: f"{component}/config.json" for component in ("text_encoder", "unet", "vae")} | {
    "scheduler": "scheduler/scheduler_config.json",
    "model_index": "model_index.json",
}
_ELSEWHERE = ("_name_or_path",)  # says where SD-Turbo's authors kept it


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Config of each component and `model_index`, by name. FILES has their places in a checkpoint."""
    base = files("sdturbo_export").joinpath("configs/sd-turbo")
    configs = {}
    for component, file in FILES.items():
        config = json.loads(base.joinpath(file).read_bytes()) | CHANGES.get(component, {})
        configs[component] = {key: value for key, value in config.items() if key not in _ELSEWHERE}
    return configs
