"""Measurements of a build in the stage store, by the hash of everything they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from sdturbo.files import atomic_write
from sdturbo_export.stage_store import StoredStage, key_of
from sdturbo_export.stage_store.sources import source_hashes

Measured = TypeVar("Measured")

# all of int8, and the backend that it measures on, which is loaded by its name
_SOURCES = ("sdturbo_export.int8.recipe", "sdturbo.backends.ort")


def made_from(kind: str, stages: Mapping[str, StoredStage], **parts: Any) -> dict[str, Any]:
    """Everything that decides a measurement: graphs and weights, prompts and other `parts`, the code, ONNX Runtime."""
    return {
        "kind": kind,
        "stages": {name: sorted(digest for digest, _ in stage.files.values()) for name, stage in stages.items()},
        **parts,
        "sources": source_hashes(*_SOURCES),
        "packages": {name: version(name) for name in ("onnxruntime", "onnx-ir", "onnxscript")},
    }


def remembered(store: Path, parts: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
    """The stored result for `parts`. If there is none, or its file is damaged, that of `measure`, which is stored."""
    file = store / f"{key_of(parts)}.json"
    try:
        data = json.loads(file.read_bytes())
        if data["sha256"] == _digest(data["result"]):
            return data["result"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    result = measure()
    with atomic_write(file) as target:
        target.write(json.dumps({"result": result, "sha256": _digest(result)}, indent=1).encode())
    return result


def _digest(result: Any) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
