"""From the text of `bundle.json` to the fields of a `Bundle`: typed and checked, all faults noted. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sdturbo.bundle.description import (
    DTYPES,
    FORMAT,
    MANIFEST,
    MAX_STEPS,
    STAGES,
    TOKENIZER,
    WEIGHT_FORMATS,
    Golden,
    ScheduleRow,
    Stage,
    TensorSpec,
    identity,
)
from sdturbo.errors import BundleError

Json = dict[str, Any]


def read_manifest(root: Path) -> Json:
    """The JSON object in the bundle's manifest, of a format this version reads. Raises BundleError."""
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


def parse_manifest(manifest: Json, faults: list[str]) -> Json | None:
    """The fields of the `Bundle` that `manifest` describes; None after noting in `faults` everything that is wrong."""
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
    quality: Json = top.get("quality", dict, {}) if "quality" in top.data else {}
    if quality:
        fields = _Fields(quality, "quality", faults)
        for key in ("prompts", "median_psnr_db", "worst_psnr_db", "median_ssim", "worst_ssim", "min_psnr_db"):
            fields.get(key, (int, float), None)
        fields.get("passed", bool, None)
    request = Golden(
        golden.get("prompt", str, ""),
        golden.get("seed", int, 0),
        golden.get("num_inference_steps", int, 1),
        golden.get("image", str, ""),
        golden.get("min_psnr", (int, float), 0.0),
    )
    bundle_id, precision = top.get("bundle_id", str, ""), top.get("precision", str, "")
    weight_format = _parse_weight_format(top)
    if not 1 <= request.num_inference_steps <= MAX_STEPS or not 0 <= request.seed < 2**64:
        faults.append(f"golden: steps {request.num_inference_steps} and seed {request.seed} are no request")
    for name in (TOKENIZER, request.image):
        if name and name not in files:
            faults.append(f"files does not list {name}")
    if not faults and (expected := identity(manifest)) != bundle_id:
        faults.append(f"bundle_id is {bundle_id}, but its contents give {expected}: {MANIFEST} was edited")
    if faults:
        return None
    return {
        "bundle_id": bundle_id,
        "model": model,
        "precision": precision,
        "weight_format": weight_format,
        "height": height,
        "width": width,
        "batch_sizes": tuple(sorted(batch_sizes)),
        "schedule": schedule,
        "stages": stages,
        "files": files,
        "parity": parity,
        "golden": request,
        "quality": quality,
    }


def _parse_weight_format(top: _Fields) -> str:
    """Bundles that do not say it are older than the rounding of weights."""
    found: str = top.get("weight_format", str, "") if "weight_format" in top.data else WEIGHT_FORMATS[0]
    if found and found not in WEIGHT_FORMATS:
        top.faults.append(f"weight_format is {found!r}, expected {' or '.join(WEIGHT_FORMATS)}")
    return found


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
