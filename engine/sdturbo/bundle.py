"""The contract between export and runtime: a directory that describes itself in `bundle.json`.

Standard library only. Reading validates the whole directory and reports every fault at once; README, "The bundle", lists
the fields. A file is hashed before anything opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sdturbo.errors import BundleError, InvalidRequest
from sdturbo.files import sha256_file
from sdturbo.hash_memory import HashMemory
from sdturbo.onnx_files import external_locations

FORMAT = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = Path(__file__).parent / "bundles" / "tiny"  # the toy model that comes with this package
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle. `files` maps each path inside it to (sha256, size in bytes).

    weight_format: what the weights of float32 graphs were rounded to, if to anything: one of `WEIGHT_FORMATS`.
    quality: of a bundle in int8, how far its pictures are from those in fp32; otherwise empty.
    trust_unchanged: large files that did not change since they were hashed within a week were not hashed again.
    """

    path: Path
    bundle_id: str
    model: Mapping[str, Any]
    precision: str
    weight_format: str
    height: int
    width: int
    batch_sizes: tuple[int, ...]
    schedule: tuple[ScheduleRow, ...]
    stages: Mapping[str, Stage]
    files: Mapping[str, tuple[str, int]]
    parity: Mapping[str, Any]
    golden: Golden
    quality: Mapping[str, Any]
    trust_unchanged: bool = False

    @classmethod
    def load(cls, path: str | Path, *, trust_unchanged: bool = False) -> Bundle:
        """Read and validate the bundle at `path`. Raises BundleError with all faults.

        trust_unchanged: do not hash large files again that are unchanged since they were, within a week (`hash_memory`).
        """
        if not isinstance(path, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"Got a bundle path of type {type(path).__name__}; expected a directory's path.")
        from sdturbo.manifest import parse_manifest, read_manifest  # which makes the classes defined here

        root = Path(path)
        faults: list[str] = []
        try:
            bundle = parse_manifest(root, read_manifest(root), faults)
        except RecursionError as error:
            raise BundleError(root, [f"{MANIFEST} cannot be read: it is nested too deeply"]) from error
        if bundle is None:
            raise BundleError(root, faults)
        bundle = replace(bundle, trust_unchanged=trust_unchanged)
        faults += bundle._file_faults()
        if not faults:
            faults += bundle._graph_faults()
        if faults:
            raise BundleError(root, faults)
        return bundle

    @property
    def decoder(self) -> str:
        """Which autoencoder draws: "AutoencoderKL", or "AutoencoderTiny" and a name."""
        return str(self.model.get("decoder", "AutoencoderKL"))

    def steps(self, num_inference_steps: int) -> range:
        """The rows of the schedule table for a run of that many steps, as values for the graphs' `step` input."""
        rows = [i for i, row in enumerate(self.schedule) if row.num_inference_steps == num_inference_steps]
        return range(rows[0], rows[-1] + 1)

    @property
    def step_counts(self) -> list[int]:
        """Values of num_inference_steps that the schedule has rows for."""
        return sorted({row.num_inference_steps for row in self.schedule})

    def graph(self, stage: str, batch_size: int) -> Path:
        """The ONNX file of a stage at one of the bundle's batch sizes."""
        return self.path / self.stages[stage].graphs[batch_size]

    def _file_faults(self) -> list[str]:
        faults: list[str] = []
        present: list[str] = []
        root = self.path.resolve()
        for name, (_, size) in self.files.items():
            file = self.path / name
            try:
                found = file.is_file()
            except OSError as error:
                faults.append(f"{name} cannot be read: {error}")
                continue
            if not found:
                faults.append(f"{name} is missing")
            elif not file.resolve().is_relative_to(root):
                faults.append(f"{name} leads out of the bundle, to {file.resolve()}")
            elif file.stat().st_size != size:
                faults.append(f"{name} has {file.stat().st_size} bytes, expected {size}: truncated or replaced")
            else:
                present.append(name)
        try:
            with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
                sha256 = HashMemory().sha256 if self.trust_unchanged else sha256_file
                digests = list(pool.map(sha256, [self.path / name for name in present]))
        except OSError as error:
            return [*faults, f"cannot be read: {error}"]
        for name, digest in zip(present, digests, strict=True):
            if digest != self.files[name][0]:
                faults.append(f"{name} was altered: sha256 {digest[:16]}…, expected {self.files[name][0][:16]}…")
        if faults:
            faults.append("build the bundle again (`sdturbo-export build`) or copy it again, whole")
        return faults

    def _graph_faults(self) -> list[str]:
        faults: list[str] = []
        for graph in sorted({graph for stage in self.stages.values() for graph in stage.graphs.values()}):
            try:
                locations = external_locations(self.path / graph)
            except ValueError as error:
                faults.append(f"{graph} is not an ONNX file: {error}")
                continue
            for location in sorted(locations):
                if str(PurePosixPath(graph).parent / location) not in self.files:
                    faults.append(f"{graph} reads weights from {location!r}, which is not a file of this bundle")
        return faults


def identity(manifest: Mapping[str, Any]) -> str:
    """The bundle id: 16 hex digits over what decides the pictures. The same model and graphs give the same id."""
    used = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.startswith(("onnx/", TOKENIZER))}
    keys = ("format", "model", "precision", "image", "batch_sizes", "schedule", "stages")
    kept = {key: manifest[key] for key in keys} | {key: manifest[key] for key in ("weight_format",) if key in manifest}
    text = json.dumps({**kept, "files": used}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
