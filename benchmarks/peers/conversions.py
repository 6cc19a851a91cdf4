"""Checkpoints in the forms that programs load, each made once per checkpoint and tool.

The name of a conversion's directory follows all that decides it: the weights, the tool with its pins, and what it was made
from. So a new exporter makes new bundles, and no row is drawn with old ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.conversation import FOLDER, Worker
from benchmarks.peers.environments import OPENVINO_GENAI, OPTIMUM_ONNX, Environment, python_of
from sdturbo_export.exchange import new_directory
from sdturbo_export.rewrites import rewrite_module, rewrite_names
from sdturbo_export.stage_store.sources import source_hashes

TIMEOUT = 6 * 3600.0  # seconds: int8 of a full-size model measures each layer


@dataclass(frozen=True, slots=True)
class Conversion:
    """A form of the checkpoint. environment: None for this interpreter. base: the conversion that it is made from.

    decoder: whether the tiny decoder takes the place of the checkpoint's.
    """

    name: str
    converter: str
    arguments: tuple[str, ...] = ()
    environment: Environment | None = None
    base: Conversion | None = None
    decoder: bool = False


def _ours(name: str, *arguments: str, decoder: bool = False) -> Conversion:
    return Conversion(name, "sdturbo_converter.py", arguments, decoder=decoder)


def _openvino(name: str, kind: str, base: Conversion | None = None, *, decoder: bool = False) -> Conversion:
    return Conversion(name, "openvino_converter.py", (kind,), OPENVINO_GENAI, base, decoder)


BUNDLE = _ours("bundle-fp32", "build")
BUNDLE_INT8 = _ours("bundle-int8", "build", "--precision", "int8")
BUNDLE_TINY_DECODER = _ours("bundle-fp32-tiny-decoder", "build", decoder=True)
# the pictures of a seeded decoder say nothing about quality, so the gate on them must not stop the build
BUNDLE_INT8_TINY_DECODER = _ours(
    "bundle-int8-tiny-decoder", "build", "--precision", "int8", "--allow-low-quality", decoder=True
)
OUR_EXPORT_FOR_OPTIMUM = _ours("our-export-for-optimum", "optimum")
OPTIMUM = Conversion("optimum-onnx", "optimum_converter.py", environment=OPTIMUM_ONNX)
OPENVINO = _openvino("openvino", "export")
OPENVINO_INT8_WEIGHTS = _openvino("openvino-int8-weights", "int8-weights", OPENVINO)
OPENVINO_HYBRID_INT8 = _openvino("openvino-hybrid-int8", "hybrid-int8", OPENVINO)
OPENVINO_FULL_INT8 = _openvino("openvino-full-int8", "full-int8", OPENVINO)
OPENVINO_TINY_DECODER = _openvino("openvino-tiny-decoder", "tiny-decoder", OPENVINO, decoder=True)
OPENVINO_HYBRID_INT8_TINY_DECODER = _openvino(
    "openvino-hybrid-int8-tiny-decoder", "tiny-decoder", OPENVINO_HYBRID_INT8, decoder=True
)


@dataclass(frozen=True, slots=True)
class Converted:
    """A conversion's directory, its key, and the milliseconds that it took with those it was made from."""

    path: Path
    key: str
    ms: float


def converted(conversion: Conversion, request: Mapping[str, Any], directory: Path) -> Converted:
    """The conversion of the request's checkpoint in `directory`, made now if it is not there. Raises PeerUnavailable."""
    base = converted(conversion.base, request, directory) if conversion.base else None
    key = _key(conversion, request, base)
    stem = f"{conversion.name}-{request['checkpoint_id'][:8]}"
    target = directory / "models" / f"{stem}-{key}"
    note = target.with_name(f"{target.name}.json")
    if not (target.is_dir() and note.is_file()):
        python = python_of(conversion.environment, directory) if conversion.environment else Path(sys.executable)
        shutil.rmtree(target, ignore_errors=True)
        asked = {**request, "base": str(base.path) if base else None}
        if not conversion.decoder:
            asked["decoder"] = None
        log = directory / f"{conversion.name}.log"
        # our tools write under a temporary name themselves, and note where finished stages lie
        place = new_directory(target) if conversion.environment else nullcontext(target)
        with (
            place as out,
            Worker(python, conversion.converter, conversion.arguments, request["threads"], log) as worker,
        ):
            ms = worker.ask("prepare", timeout=TIMEOUT, **{**asked, "model": str(out)})["ms"]
        _remove_others(
            target.parent, stem, target.name
        )  # now, for a build takes unchanged stages from the bundle before
        note.write_text(json.dumps({"ms": ms + (base.ms if base else 0.0)}), encoding="utf-8")
    return Converted(target, key, json.loads(note.read_text(encoding="utf-8"))["ms"])


def _key(conversion: Conversion, request: Mapping[str, Any], base: Converted | None) -> str:
    parts: dict[str, Any] = {
        "checkpoint": request["checkpoint_id"],
        "converter": hashlib.sha256((FOLDER / conversion.converter).read_bytes()).hexdigest(),
        "arguments": conversion.arguments,
        "base": base.key if base else None,
        "decoder": request["decoder_id"] if conversion.decoder else None,
        "prompts": request["prompts"] if conversion.environment is OPENVINO_GENAI else None,
    }
    if conversion.environment:
        parts["pins"] = conversion.environment.pins
    else:
        parts["sources"] = _exporter_sources()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _exporter_sources() -> dict[str, str]:
    """sha256 of each module that may change what our exporter writes. Rewrites are loaded by their names."""
    return source_hashes("sdturbo_export.cli", *map(rewrite_module, rewrite_names()))


def _remove_others(folder: Path, stem: str, kept: str) -> None:
    """Delete what older tools made of this checkpoint: at full size a conversion has gigabytes."""
    for path in folder.glob(f"{stem}-*"):
        if path.name == kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
