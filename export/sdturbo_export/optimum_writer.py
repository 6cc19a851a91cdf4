"""A checkpoint as ONNX files with the signatures that optimum-onnx's ORTStableDiffusionPipeline asks for.

Scheduler and post-processing are the pipeline's, so nothing is folded in; the exact rewrites are, except the table of
timesteps, for the pipeline may ask for any. Batch 1, 512×512. Layout and names of tensors follow optimum-onnx 0.1.0
(optimum/onnxruntime/modeling_diffusion.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from sdturbo.bundle.description import LATENT_SCALE
from sdturbo.errors import InvalidRequest
from sdturbo.tokenizer import MAX_LENGTH
from sdturbo_export.bundle_writer import write_licence
from sdturbo_export.exchange import new_directory
from sdturbo_export.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.rewrites import rewrite, rewrites_of
from sdturbo_export.stages import HEIGHT, WIDTH
from sdturbo_export.weights.checkpoint import Checkpoint

GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"
PARTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}
# part -> the stage whose rewrites it takes
_STAGES = {"text_encoder": "text_encoder", "unet": "denoiser", "vae_decoder": "decoder", "vae_encoder": "encoder"}


class _TextEncoder(nn.Module):
    """input_ids int64 (1, 77) -> last_hidden_state (1, 77, width), pooler_output (1, width)."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.text_encoder(input_ids)
        return out.last_hidden_state, out.pooler_output


class _Unet(nn.Module):
    """sample (1, 4, H/8, W/8), timestep (), encoder_hidden_states (1, 77, width) -> out_sample (1, 4, H/8, W/8)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, prompt_embeds, return_dict=False)[0]


class _VaeDecoder(nn.Module):
    """latent_sample (1, 4, H/8, W/8), already divided by the scaling factor -> sample (1, 3, H, W), -1 to 1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


class _VaeEncoder(nn.Module):
    """sample (1, 3, H, W), -1 to 1 -> latent_parameters (1, 8, H/8, W/8): mean and logvar."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.vae.quant_conv(self.vae.encoder(sample))


_MODULES: Mapping[str, Callable[[Any], nn.Module]] = {
    "text_encoder": _TextEncoder,
    "unet": _Unet,
    "vae_decoder": _VaeDecoder,
    "vae_encoder": _VaeEncoder,
}
_OUTPUTS = {
    "text_encoder": ("last_hidden_state", "pooler_output"),
    "unet": ("out_sample",),
    "vae_decoder": ("sample",),
    "vae_encoder": ("latent_parameters",),
}


def write_optimum(
    checkpoint: Checkpoint, out: Path, *, without: Collection[str] = (), say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the new directory `out`, under a temporary name until it is whole.

    without: names of rewrites to leave out. say: takes lines of progress.
    Raises InvalidRequest if `out` exists or a name is unknown.
    """
    if out.exists():
        raise InvalidRequest(f"{out} exists; expected the name of a new directory.")
    rewrites = {part: rewrites_of(stage, "fp32", {*without, "time-tables"}) for part, stage in _STAGES.items()}
    with new_directory(out) as partial:
        for part, component in PARTS.items():
            say(part)
            (partial / part).mkdir(parents=True)
            module = _MODULES[part](checkpoint.module(component)).eval()
            rewrite(module, rewrites[part])
            with WeightFile(partial / part / WEIGHTS) as weights:
                onnx_from_torch(
                    module, _inputs(part, checkpoint), _OUTPUTS[part], partial / part / GRAPH, weights, pack=False
                )
            _write_json(partial / part / "config.json", checkpoint.configs[component])
        for name in ("tokenizer", "scheduler"):
            shutil.copytree(checkpoint.path / name, partial / name)
        index = json.loads((checkpoint.path / "model_index.json").read_bytes())
        kept = {key: value for key, value in index.items() if key not in ("safety_checker", "feature_extractor")}
        _write_json(partial / "model_index.json", kept | {"requires_safety_checker": False})
        write_licence(partial, checkpoint)
    return out


def _inputs(part: str, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Example inputs under the names that optimum feeds."""
    latents = torch.zeros(1, 4, HEIGHT // LATENT_SCALE, WIDTH // LATENT_SCALE)
    width = checkpoint.configs["text_encoder"]["hidden_size"]
    return {
        "text_encoder": {"input_ids": torch.zeros(1, MAX_LENGTH, dtype=torch.int64)},
        "unet": {
            "sample": latents,
            "timestep": torch.tensor(999.0),
            "encoder_hidden_states": torch.zeros(1, MAX_LENGTH, width),
        },
        "vae_decoder": {"latent_sample": latents},
        "vae_encoder": {"sample": torch.zeros(1, 3, HEIGHT, WIDTH)},
    }[part]


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
