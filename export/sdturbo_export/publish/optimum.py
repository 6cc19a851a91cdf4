"""A checkpoint as ONNX files with the signatures that optimum-onnx's ORTStableDiffusionPipeline asks for.

Scheduler and post-processing are the pipeline's, so no graph holds them. The exact rewrites are applied, except the table
of timesteps, for the pipeline may ask for any timestep. Batch size 1, 512×512. Layout and names of tensors follow
optimum-onnx 0.1.0 (optimum/onnxruntime/modeling_diffusion.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdturbo.bundle.description import LATENT_SCALE
from sdturbo.errors import InvalidRequest
from sdturbo.tokenizer import MAX_LENGTH
from sdturbo_export.bundle_writer import write_licence
from sdturbo_export.exchange import new_directory
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.rewrites import rewrite, rewrites_of
from sdturbo_export.stages import DEFAULT_SIZE
from sdturbo_export.weights.checkpoint import Checkpoint

GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"


@dataclass(frozen=True, slots=True)
class _Part:
    """A directory of the pipeline, which gets the rewrites of our `stage`.

    call: the component and the graph's inputs to its outputs. inputs: examples, for a text encoder of that width.
    """

    component: str
    stage: str
    call: Callable[..., Any]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]


def _latents() -> torch.Tensor:
    return torch.zeros(1, 4, *(side // LATENT_SCALE for side in DEFAULT_SIZE))


PARTS = {
    "text_encoder": _Part(
        "text_encoder",
        "text_encoder",
        lambda text_encoder, ids: text_encoder(ids, return_dict=False)[:2],
        lambda _: {"input_ids": torch.zeros(1, MAX_LENGTH, dtype=torch.int64)},
        ("last_hidden_state", "pooler_output"),
    ),
    "unet": _Part(
        "unet",
        "denoiser",
        lambda unet, *inputs: unet(*inputs, return_dict=False)[0],
        lambda width: {
            "sample": _latents(),
            "timestep": torch.tensor(999.0),
            "encoder_hidden_states": torch.zeros(1, MAX_LENGTH, width),
        },
        ("out_sample",),
    ),
    "vae_decoder": _Part(
        "vae",
        "decoder",
        lambda vae, latents: vae.decode(latents, return_dict=False)[0],
        lambda _: {"latent_sample": _latents()},  # already divided by the scaling factor
        ("sample",),
    ),
    "vae_encoder": _Part(
        "vae",
        "encoder",
        lambda vae, sample: vae.quant_conv(vae.encoder(sample)),
        lambda _: {"sample": torch.zeros(1, 3, *DEFAULT_SIZE)},  # from -1 to 1
        ("latent_parameters",),  # mean and logarithm of the variance
    ),
}


class _Graph(nn.Module):
    """A part's component under its own name, which begins the names of its weights."""

    def __init__(self, part: _Part, component: nn.Module) -> None:
        super().__init__()
        self.add_module(part.component, component)
        self._part = part

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._part.call(self.get_submodule(self._part.component), *inputs)


def write_optimum(
    checkpoint: Checkpoint, out: Path, *, without: Collection[str] = (), say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the new directory `out`, under a temporary name until it is whole.

    without: names of rewrites to leave out. say: takes lines of progress.
    Raises InvalidRequest if `out` exists or a name is unknown.
    """
    if out.exists():
        raise InvalidRequest(f"{out} exists. Expected the name of a new directory.")
    rewrites = {name: rewrites_of(part.stage, "fp32", {*without, "time-tables"}) for name, part in PARTS.items()}
    width = checkpoint.configs["text_encoder"]["hidden_size"]
    with new_directory(out) as partial:
        for name, part in PARTS.items():
            say(name)
            folder = partial / name
            folder.mkdir(parents=True)
            module = _Graph(part, checkpoint.module(part.component)).eval()
            rewrite(module, rewrites[name])
            with WeightFile(folder / WEIGHTS) as weights:
                onnx_from_torch(module, part.inputs(width), part.outputs, folder / GRAPH, weights, pack=False)
            _write_json(folder / "config.json", checkpoint.configs[part.component])
        for name in ("tokenizer", "scheduler"):
            shutil.copytree(checkpoint.path / name, partial / name)
        index = json.loads((checkpoint.path / "model_index.json").read_bytes())
        for absent in ("safety_checker", "feature_extractor"):
            index.pop(absent, None)
        _write_json(partial / "model_index.json", index | {"requires_safety_checker": False})
        write_licence(partial, checkpoint)
    return out


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
