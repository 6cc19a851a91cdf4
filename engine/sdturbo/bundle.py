"""The contract between export and runtime: a directory that describes itself in `bundle.json`.

Standard library only. Reading validates the whole directory and reports every fault at once; README, "The bundle", lists
the fields. A file is hashed before anything opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sdturbo.errors import BundleError, InvalidRequest
from sdturbo.files import sha256_file
from sdturbo.onnx_files import external_locations

FORMAT = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = Path(__file__).parent / "bundles" / "tiny"  # the toy model that comes with this package
STAGES = ("text_encoder", "denoiser", "decoder", "encoder")
MAX_STEPS = 4
DTYPES = ("int64", "uint8", "float32", "float16")

Json = dict[str, Any]


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
    """A validated bundle. `files` maps each path inside it to (sha256, size in bytes)."""

    path: Path
    bundle_id: str
    model: Mapping[str, Any]
    precision: str
    height: int
    width: int
    batch_sizes: tuple[int, ...]
    schedule: tuple[ScheduleRow, ...]
    stages: Mapping[str, Stage]
    files: Mapping[str, tuple[str, int]]
    parity: Mapping[str, Any]
    golden: Golden

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read and validate the bundle at `path`. Raises BundleError with all faults."""
        if not isinstance(path, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"Got a bundle path of type {type(path).__name__}; expected a directory's path.")
        root = Path(path)
        faults: list[str] = []
        try:
            bundle = _parse(root, _read_manifest(root), faults)
        except RecursionError as error:
            raise BundleError(root, [f"{MANIFEST} cannot be read: it is nested too deeply"]) from error
        if bundle is None:
            raise BundleError(root, faults)
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
                digests = list(pool.map(sha256_file, [self.path / name for name in present]))
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
    kept = {key: manifest[key] for key in keys}
    text = json.dumps({**kept, "files": used}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_manifest(root: Path) -> Json:
    file = root / MANIFEST
    try:
        found = root.is_dir()
    except OSError as error:
        raise BundleError(root, [f"it cannot be opened: {error}"]) from error
    if not found:
        raise BundleError(root, ["there is no such directory; `make engines` builds one and prints its path"])
    if not file.is_file():
        raise BundleError(root, [f"it holds no {MANIFEST}; point at the directory that `sdturbo-export build` wrote"])
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(root, [f"{MANIFEST} cannot be read: {error}"]) from error
    revision = manifest.get("format") if isinstance(manifest, dict) else None  # pyright: ignore
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 1:
        raise BundleError(root, [f"{MANIFEST} has format {revision!r}, expected a whole number up to {FORMAT}"])
    if revision > FORMAT:
        raise BundleError(
            root,
            [
                f"its format is {revision}, this sdturbo reads up to {FORMAT}: upgrade sdturbo, or build the bundle again"
            ],
        )
    return cast("Json", manifest)


class _Fields:
    """Typed access to JSON that writes down what is wrong instead of stopping at it."""

    def __init__(self, data: Any, where: str, faults: list[str]) -> None:
        self.data: Json = cast("Json", data) if isinstance(data, dict) else {}
        self.where = where
        self.faults = faults
        if not isinstance(data, dict):
            faults.append(f"{where} is {type(data).__name__}, expected an object")

    def get(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self.data.get(key)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        found = "missing" if key not in self.data else f"{value!r:.60}"
        expected = kind.__name__ if isinstance(kind, type) else "number"
        self.faults.append(f"{self.where}: {key} is {found}, expected {expected}")
        return default


def _parse(root: Path, manifest: Json, faults: list[str]) -> Bundle | None:
    top = _Fields(manifest, MANIFEST, faults)
    image = _Fields(top.get("image", dict, {}), "image", faults)
    golden = _Fields(top.get("golden", dict, {}), "golden", faults)
    files = _parse_files(top.get("files", dict, {}), faults)
    batch_sizes = tuple(top.get("batch_sizes", list, []))
    if not batch_sizes or any(not isinstance(size, int) or size < 1 for size in batch_sizes):
        faults.append(f"batch_sizes is {list(batch_sizes)}, expected whole numbers from 1")
    stages = _parse_stages(top.get("stages", dict, {}), batch_sizes, files, faults)
    schedule = _parse_schedule(top.get("schedule", dict, {}), faults)
    height, width = image.get("height", int, 0), image.get("width", int, 0)
    if "decoder" in stages and [one.shape for one in stages["decoder"].outputs] != [("B", height, width, 3)]:
        faults.append(f"stages.decoder: the output is not one picture of {height}x{width}, as image says")
    model = top.get("model", dict, {})
    _Fields(model, "model", faults).get("name", str, "")
    for i, lora in enumerate(model.get("loras", [])):
        fields = _Fields(lora, f"model.loras[{i}]", faults)
        for key, kind in (("file", str), ("sha256", str), ("scale", (int, float))):
            fields.get(key, kind, None)
    parity = top.get("parity", dict, {})
    for name, entry in parity.items():
        fields = _Fields(entry, f"parity.{name}", faults)
        for key in ("relative_l2", "bound"):
            fields.get(key, (int, float), None)
    bundle = Bundle(
        path=root,
        bundle_id=top.get("bundle_id", str, ""),
        model=model,
        precision=top.get("precision", str, ""),
        height=height,
        width=width,
        batch_sizes=tuple(sorted(batch_sizes)) if not faults else (),
        schedule=schedule,
        stages=stages,
        files=files,
        parity=parity,
        golden=Golden(
            golden.get("prompt", str, ""),
            golden.get("seed", int, 0),
            golden.get("num_inference_steps", int, 1),
            golden.get("image", str, ""),
            golden.get("min_psnr", (int, float), 0.0),
        ),
    )
    if not 1 <= bundle.golden.num_inference_steps <= MAX_STEPS or not 0 <= bundle.golden.seed < 2**64:
        faults.append(f"golden: steps {bundle.golden.num_inference_steps} and seed {bundle.golden.seed} are no request")
    for name in (TOKENIZER, bundle.golden.image):
        if name and name not in files:
            faults.append(f"files does not list {name}")
    if not faults and (expected := identity(manifest)) != bundle.bundle_id:
        faults.append(f"bundle_id is {bundle.bundle_id}, but its contents give {expected}: {MANIFEST} was edited")
    return None if faults else bundle


def _parse_files(data: Json, faults: list[str]) -> dict[str, tuple[str, int]]:
    files: dict[str, tuple[str, int]] = {}
    for name, entry in data.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            faults.append(f"files: {name!r} leads out of the bundle")
            continue
        fields = _Fields(entry, f"files[{name!r}]", faults)
        files[name] = (fields.get("sha256", str, ""), fields.get("size", int, 0))
    return files


def _parse_stages(
    data: Json, batch_sizes: tuple[int, ...], files: Mapping[str, object], faults: list[str]
) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for name in STAGES:
        if name not in data:
            faults.append(f"stage {name} is missing")
            continue
        fields = _Fields(data[name], f"stages.{name}", faults)
        graphs: dict[int, str] = {}
        declared = fields.get("graphs", dict, {})
        for size in batch_sizes:
            graph = declared.get(str(size))
            if not isinstance(graph, str) or graph not in files:
                faults.append(f"stages.{name}: no listed graph for batch size {size} (found {graph!r})")
            else:
                graphs[size] = graph
        stages[name] = Stage(
            name,
            _parse_tensors(fields.get("inputs", list, []), f"stages.{name}.inputs", faults),
            _parse_tensors(fields.get("outputs", list, []), f"stages.{name}.outputs", faults),
            graphs,
        )
    return stages


def _parse_tensors(data: list[Any], where: str, faults: list[str]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for entry in data:
        fields = _Fields(entry, where, faults)
        spec = TensorSpec(
            fields.get("name", str, ""), fields.get("dtype", str, ""), tuple(fields.get("shape", list, []))
        )
        if spec.dtype not in DTYPES:
            faults.append(f"{where}: {spec.name} has dtype {spec.dtype!r}, expected one of {', '.join(DTYPES)}")
        if any(size != "B" and (not isinstance(size, int) or size < 1) for size in spec.shape):
            faults.append(f"{where}: {spec.name} has shape {list(spec.shape)}, expected positive sizes or 'B'")
        specs.append(spec)
    if not specs:
        faults.append(f"{where} is empty")
    return tuple(specs)


def _parse_schedule(data: Json, faults: list[str]) -> tuple[ScheduleRow, ...]:
    fields = _Fields(data, "schedule", faults)
    rows: list[ScheduleRow] = []
    for i, entry in enumerate(fields.get("rows", list, [])):
        row = _Fields(entry, f"schedule.rows[{i}]", faults)
        rows.append(
            ScheduleRow(
                row.get("num_inference_steps", int, 0),
                row.get("index", int, 0),
                row.get("timestep", int, 0),
                row.get("sigma", (int, float), 0.0),
                row.get("sigma_next", (int, float), 0.0),
            )
        )
    expected = [(n, i) for n in range(1, MAX_STEPS + 1) for i in range(n)]
    if [(row.num_inference_steps, row.index) for row in rows] != expected:
        faults.append(f"schedule.rows must hold the runs of 1 to {MAX_STEPS} steps in order, {len(expected)} rows")
    return tuple(rows)
