"""Measurements of a build kept in the stage store, by the hash of everything they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from sdturbo.files import atomic_write
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stage_store.sources import source_hashes

Measured = TypeVar("Measured")

# all of int8, and the backend that it measures on, which is loaded by its name
_SOURCES = ("sdturbo_export.int8.recipe", "sdturbo.backends.ort")


def made_from(kind: str, stages: Mapping[str, StoredStage], **parts: Any) -> dict[str, Any]:
    """What decides a measurement: graphs and weights, prompts and other `parts`, the code, ONNX Runtime."""
    return {
        "kind": kind,
        "stages": {name: sorted(digest for digest, _ in stage.files.values()) for name, stage in stages.items()},
        **parts,
        "sources": source_hashes(*_SOURCES),
        "packages": {name: version(name) for name in ("onnxruntime", "onnx-ir", "onnxscript")},
    }


def key_of(parts: Mapping[str, Any]) -> str:
    return f"{parts['kind']}-{hashlib.sha256(_canonical(parts)).hexdigest()[:20]}"


def remembered(store: Path, parts: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
    """The stored result for `parts`, or that of `measure`, stored. A damaged file is measured again."""
    file = store / f"{key_of(parts)}.json"
    try:
        data = json.loads(file.read_bytes())
        if data["sha256"] == hashlib.sha256(_canonical(data["result"])).hexdigest():
            return data["result"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    result = measure()
    data = {"result": result, "sha256": hashlib.sha256(_canonical(result)).hexdigest()}
    with atomic_write(file) as target:
        target.write(json.dumps(data, indent=1).encode())
    return result


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()
