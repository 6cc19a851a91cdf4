"""From the text of `bundle.json` to the fields of a `Bundle`, typed and checked. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sdturbo.bundle.description import (
    FORMAT,
    LATENT_SCALE,
    MANIFEST,
    MAX_STEPS,
    TOKENIZER,
    WEIGHT_FORMATS,
    Golden,
    ScheduleRow,
    identity,
)
from sdturbo.bundle.fields import NUMBER, Fields, Json, is_count
from sdturbo.bundle.hub_cache import repository_of
from sdturbo.bundle.manifest_stages import check_graphs, read_stages
from sdturbo.errors import BundleError

MAX_SIZE = 16 << 20  # bytes of a manifest. Those of real bundles have some tens of thousands


def read_manifest(root: Path) -> Json:
    """The JSON object in the bundle's manifest, in a format that this version reads. Raises BundleError."""
    file = root / MANIFEST
    try:
        is_missing = not root.is_dir()
    except OSError as error:
        raise BundleError(root, [f"it cannot be opened: {error}"]) from error
    if is_missing:
        raise BundleError(root, ["there is no such directory. `make engines` builds one and prints its path"])
    if not file.is_file():
        raise BundleError(root, [f"it holds no {MANIFEST}. Point at the directory that `sdturbo-export build` wrote"])
    try:
        check_size(root, file.stat().st_size)
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        way_out = (
            "" if repository_of(root) is None else f". Delete {file.resolve()}, then name the bundle by its Hub id"
        )
        raise BundleError(root, [f"{MANIFEST} cannot be read: {error}{way_out}"]) from error
    revision = manifest.get("format") if isinstance(manifest, dict) else None  # pyright: ignore
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 1:
        raise BundleError(root, [f"{MANIFEST} has format {revision!r}, expected a whole number up to {FORMAT}"])
    if revision > FORMAT:
        fault = (
            f"its format is {revision}, this sdturbo reads up to {FORMAT}: upgrade sdturbo, or build the bundle again"
        )
        raise BundleError(root, [fault])
    return cast("Json", manifest)


def check_size(place: str | Path, size: int) -> None:
    """Raise BundleError if a manifest of that size in bytes is too large to be one. place: of the bundle, for the text."""
    if size > MAX_SIZE:
        raise BundleError(place, [f"its {MANIFEST} has {size} bytes, expected at most {MAX_SIZE}"])


def parse_manifest(manifest: Json, faults: list[str]) -> Json | None:
    """The fields of the `Bundle` that `manifest` describes. None if there are faults, which `faults` then holds."""
    top = Fields(_from_format_1(manifest) if manifest["format"] == 1 else manifest, MANIFEST, faults)
    files = _files(top.get("files", dict, {}), faults)
    batch_sizes = _batch_sizes(top)
    sizes = _sizes(top.get("sizes", list, []), faults)
    declared = read_stages(top.get("stages", dict, {}), faults)
    for stage in declared.values():
        check_graphs(stage, batch_sizes, sizes, files, faults)
    height, width = sizes[0] if sizes else (0, 0)
    stages = {name: stage.at(height, width) for name, stage in declared.items()}
    if "decoder" in stages and [spec.shape for spec in stages["decoder"].outputs] != [("B", height, width, 3)]:
        faults.append(f"stages.decoder: the output is not one picture of {height}x{width}, the bundle's size")
    fields: Json = {
        "bundle_id": top.get("bundle_id", str, ""),
        "model": _model(top),
        "precision": top.get("precision", str, ""),
        "weight_format": _weight_format(top),
        "sizes": sizes,
        "batch_sizes": batch_sizes,
        "schedule": _schedule(top.get("schedule", dict, {}), faults),
        "declared": declared,
        "stages": stages,
        "files": files,
        "parity": _parity(top),
        "golden": _golden(top, files),
        "quality": _quality(top),
    }
    if TOKENIZER not in files:
        faults.append(f"files does not list {TOKENIZER}")
    if not faults and (expected := identity(manifest)) != fields["bundle_id"]:
        faults.append(f"bundle_id is {fields['bundle_id']}, but its contents give {expected}: {MANIFEST} was edited")
    return None if faults else fields


def _from_format_1(manifest: Json) -> Json:
    """The manifest in format 2. Format 1 had one picture size, as numbers in every shape, and one file per batch size."""
    stages: Any = manifest.get("stages")
    if isinstance(stages, dict):
        stages = {name: _stage_from_format_1(stage) for name, stage in cast("Json", stages).items()}
    return {**manifest, "sizes": [manifest.get("image")], "stages": stages}


def _stage_from_format_1(stage: Any) -> Any:
    fields = cast("Json", stage) if isinstance(stage, dict) else {}
    if not isinstance(graphs := fields.get("graphs"), dict):
        return cast("Any", stage)
    pairs = cast("Json", graphs).items()
    listed = [{"batch_size": int(size), "file": file} for size, file in pairs if size.isdecimal() and len(size) < 10]
    return {**fields, "graphs": listed}


def _batch_sizes(top: Fields) -> tuple[int, ...]:
    batch_sizes: list[Any] = top.get("batch_sizes", list, [])
    if batch_sizes and all(is_count(size) for size in batch_sizes):
        return tuple(sorted(batch_sizes))
    top.faults.append(f"batch_sizes is {batch_sizes}, expected whole numbers from 1")
    return ()


def _sizes(data: list[Any], faults: list[str]) -> tuple[tuple[int, int], ...]:
    """(height, width) in pixels of every size. The first is the default."""
    sizes: list[tuple[int, int]] = []
    for i, entry in enumerate(data):
        fields = Fields(entry, f"sizes[{i}]", faults)
        height, width = fields.get("height", int, 0), fields.get("width", int, 0)
        if height < 1 or width < 1 or height % LATENT_SCALE or width % LATENT_SCALE:
            faults.append(f"sizes[{i}] is {height}x{width}, expected multiples of {LATENT_SCALE} from {LATENT_SCALE}")
        sizes.append((height, width))
    if not sizes:
        faults.append("sizes is empty")
    return tuple(sizes)


def _model(top: Fields) -> Json:
    model: Json = top.get("model", dict, {})
    fields = Fields(model, "model", top.faults)
    fields.get("name", str, "")
    for i, lora in enumerate(fields.optional("loras", list, [])):
        entry = Fields(lora, f"model.loras[{i}]", top.faults)
        for key, kind in (("file", str), ("sha256", str), ("scale", NUMBER)):
            entry.get(key, kind, None)
    return model


def _weight_format(top: Fields) -> str:
    """Bundles without it are older than the rounding of weights."""
    name: str = top.optional("weight_format", str, WEIGHT_FORMATS[0])
    if name not in WEIGHT_FORMATS:
        top.faults.append(f"weight_format is {name!r}, expected {' or '.join(WEIGHT_FORMATS)}")
    return name


def _parity(top: Fields) -> Json:
    parity: Json = top.get("parity", dict, {})
    for name, entry in parity.items():
        fields = Fields(entry, f"parity.{name}", top.faults)
        for key in ("relative_l2", "bound"):
            fields.get(key, NUMBER, None)
    return parity


def _quality(top: Fields) -> Json:
    quality: Json = top.optional("quality", dict, {})
    if quality:
        fields = Fields(quality, "quality", top.faults)
        for key in ("prompts", "median_psnr_db", "worst_psnr_db", "median_ssim", "worst_ssim", "min_psnr_db"):
            fields.get(key, NUMBER, None)
        fields.get("passed", bool, None)
    return quality


def _golden(top: Fields, files: Mapping[str, object]) -> Golden:
    known = len(top.faults)
    golden = Golden(**Fields(top.get("golden", dict, {}), "golden", top.faults).read(Golden))
    is_request = 1 <= golden.num_inference_steps <= MAX_STEPS and 0 <= golden.seed < 2**64
    if len(top.faults) == known and not is_request:
        top.faults.append(f"golden: steps {golden.num_inference_steps} and seed {golden.seed} are no request")
    if golden.image and golden.image not in files:
        top.faults.append(f"files does not list {golden.image}")
    return golden


def _files(data: Json, faults: list[str]) -> dict[str, tuple[str, int]]:
    files: dict[str, tuple[str, int]] = {}
    for name, entry in data.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:  # C: is a drive of Windows
            faults.append(f"files: {name!r} leads out of the bundle")
            continue
        fields = Fields(entry, f"files[{name!r}]", faults)
        files[name] = (fields.get("sha256", str, ""), fields.get("size", int, 0))
    return files


def _schedule(data: Json, faults: list[str]) -> tuple[ScheduleRow, ...]:
    fields = Fields(data, "schedule", faults)
    rows = [
        ScheduleRow(**Fields(entry, f"schedule.rows[{i}]", faults).read(ScheduleRow))
        for i, entry in enumerate(fields.get("rows", list, []))
    ]
    expected = [(n, i) for n in range(1, MAX_STEPS + 1) for i in range(n)]
    if [(row.num_inference_steps, row.index) for row in rows] != expected:
        faults.append(f"schedule.rows must hold the runs of 1 to {MAX_STEPS} steps in order, {len(expected)} rows")
    return tuple(rows)
