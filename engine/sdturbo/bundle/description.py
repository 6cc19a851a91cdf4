"""What `bundle.json` says, as types: stages with their tensors and graphs, the schedule, the golden picture. Standard library
only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = Path(__file__).parents[1] / "bundles" / "tiny"  # the toy model that comes with this package
STAGES = ("text_encoder", "denoiser", "decoder", "encoder")
MAX_STEPS = 4
WEIGHT_FORMATS = ("fp32", "fp16")
DTYPES = ("int64", "uint8", "float32", "float16")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a stage's tensor; "B" in the shape stands for the batch size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def shape_at(self, batch_size: int) -> tuple[int, ...]:
        return tuple(batch_size if size == "B" else int(size) for size in self.shape)

    @property
    def is_batched(self) -> bool:
        return "B" in self.shape


@dataclass(frozen=True, slots=True)
class Stage:
    """One graph of the pipeline: its tensors in order, and its ONNX file for each batch size."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graphs: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One row of the steps table: step `index` of a run of `num_inference_steps`. Sigmas are float32 values."""

    num_inference_steps: int
    index: int
    timestep: int
    sigma: float
    sigma_next: float


@dataclass(frozen=True, slots=True)
class Golden:
    """A picture made at export: the request, its PNG in the bundle, and the least PSNR another backend must reach."""

    prompt: str
    seed: int
    num_inference_steps: int
    image: str
    min_psnr: float


def identity(manifest: Mapping[str, Any]) -> str:
    """The bundle id: 16 hex digits over what decides the pictures. The same model and graphs give the same id."""
    used = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.startswith(("onnx/", TOKENIZER))}
    keys = ("format", "model", "precision", "image", "batch_sizes", "schedule", "stages")
    kept = {key: manifest[key] for key in keys} | {key: manifest[key] for key in ("weight_format",) if key in manifest}
    text = json.dumps({**kept, "files": used}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
