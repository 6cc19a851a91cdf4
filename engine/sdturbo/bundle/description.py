"""The types of `bundle.json`: stages with tensors and graphs, schedule, golden picture. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdturbo.errors import InvalidRequest

FORMAT = 2  # format 1 knew one picture size and one form of each graph. It is still read
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = Path(__file__).parents[1] / "bundles" / "tiny"  # the toy model of this package
STAGES = ("text_encoder", "denoiser", "decoder", "encoder")
NOISES = ("posterior_noise", "noise")  # inputs of the encoder, in the order in which diffusers draws them
MAX_STEPS = 4
LATENT_SCALE = 8  # pixels per latent, in height and in width
WEIGHT_FORMATS = ("fp32", "fp16")
DTYPES = ("int64", "uint8", "float32", "float16")
SYMBOLS = ("B", "H", "W", "H/8", "W/8")  # in shapes: batch size, height and width in pixels and in latents
Size = tuple[int, int]  # height and width of pictures in pixels
PLAIN = "plain"  # the form of a graph that every backend takes
ONNXRUNTIME_CUDA = "onnxruntime-cuda"  # the form in operators that ONNX Runtime's CUDA provider alone has


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a stage's tensor. The shape may hold `SYMBOLS`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def at(self, height: int, width: int) -> TensorSpec:
        """The tensor for pictures of that size in pixels. Only "B" is left open."""
        sizes: dict[int | str, int] = {"H": height, "W": width}
        sizes |= {"H/8": height // LATENT_SCALE, "W/8": width // LATENT_SCALE}
        return replace(self, shape=tuple(sizes.get(size, size) for size in self.shape))

    def shape_at(self, batch_size: int) -> tuple[int, ...]:
        """The shape for a batch size, once `at` has settled the picture's size."""
        return tuple(batch_size if size == "B" else int(size) for size in self.shape)

    @property
    def is_sized(self) -> bool:
        """Whether the shape depends on the picture's size."""
        return not {"H", "W", "H/8", "W/8"}.isdisjoint(self.shape)


@dataclass(frozen=True, slots=True)
class GraphName:
    """The name of a stage's graph. Shapes are static: there is one graph per batch size, picture size and form.

    height, width: of the picture in pixels, 0 where the stage sees neither picture nor latents, as the text encoder.
    form: `PLAIN`, or a name for graphs of one execution provider or precision.
    """

    batch_size: int
    height: int = 0
    width: int = 0
    form: str = PLAIN


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the pipeline: its tensors in order, and the names of its ONNX files in the bundle."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graphs: Mapping[GraphName, str]
    size: Size | None = None  # of the pictures, once `at` has settled it

    def at(self, height: int, width: int) -> Stage:
        """The stage for pictures of that size in pixels."""
        inputs, outputs = (tuple(spec.at(height, width) for spec in specs) for specs in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs, size=(height, width) if self.is_sized else None)

    def title(self, batch_size: int) -> str:
        """`decoder at batch size 1 and 768x512 pixels`, width x height."""
        pixels = f" and {self.size[1]}x{self.size[0]} pixels" if self.size else ""
        return f"{self.name} at batch size {batch_size}{pixels}"

    @property
    def is_sized(self) -> bool:
        return any(spec.is_sized for spec in (*self.inputs, *self.outputs))

    def graph(self, name: GraphName) -> str | None:
        """The file of that graph. A graph without a size is for every size."""
        return self.graphs.get(name) or self.graphs.get(replace(name, height=0, width=0))


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One row of the schedule: step `index` of a run of `num_inference_steps`. Sigmas are float32 values."""

    num_inference_steps: int
    index: int
    timestep: int
    sigma: float
    sigma_next: float


@dataclass(frozen=True, slots=True)
class Golden:
    """A picture made at export. image: its PNG in the bundle. min_psnr: the least peak signal-to-noise ratio in dB."""

    prompt: str
    seed: int
    num_inference_steps: int
    image: str
    min_psnr: float


def parse_size(text: str) -> Size:
    """(height, width) of `768x512`, width x height. Raises InvalidRequest."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and text.isascii() and len(text) < 12):
        raise InvalidRequest(f"Got the size {text!r:.40}. Expected width x height in pixels, such as 768x512.")
    return int(height), int(width)


def golden_image(image: str, height: int, width: int) -> str:
    """The golden picture's file at another size than the default: `golden.768x512.png`, width x height, for `golden.png`."""
    stem, _, suffix = image.rpartition(".")
    return f"{stem}.{width}x{height}.{suffix}"


def rows_of(schedule: Sequence[ScheduleRow], num_inference_steps: int) -> range:
    """The rows of the schedule for a run of that many steps, as values for the graphs' `step` input."""
    rows = [i for i, row in enumerate(schedule) if row.num_inference_steps == num_inference_steps]
    return range(rows[0], rows[-1] + 1)


def identity(manifest: Mapping[str, Any]) -> str:
    """The bundle id: 16 hex digits over everything that decides the pictures."""
    files = {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name.startswith(("onnx/", TOKENIZER))
    }
    keys = ("format", "model", "precision", "weight_format", "image", "sizes", "batch_sizes", "schedule", "stages")
    parts = {key: manifest[key] for key in keys if key in manifest}  # formats and older bundles lack some
    text = json.dumps({**parts, "files": files}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
