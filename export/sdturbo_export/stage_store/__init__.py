"""Finished stages, by the hash of everything they were made from: an interrupted or repeated build picks them up.

A stage's graphs and weights lie in the store until a bundle holds them; then the store keeps a note of where they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.files import atomic_write, sha256_file
from sdturbo_export.rewrites import rewrite_module
from sdturbo_export.stage_store.sources import source_hashes
from sdturbo_export.stages import StagePlan
from sdturbo_export.weights.checkpoint import Checkpoint

MANIFEST = "stage.json"
OUTPUT = "output.npy"
# Graphs are written by the first, from a checkpoint that the second may have changed; a note is written and read here.
_SOURCES = ("sdturbo_export.stage_store.graphs", "sdturbo_export.weights.autoencoder_tiny", __name__)
_PACKAGES = ("torch", "diffusers", "transformers", "onnxscript", "onnx-ir")


@dataclass(frozen=True, slots=True)
class StoredStage:
    """`path` holds the stage's graphs and weights, `note` is its entry in the store.

    files: name -> (sha256, size). parity: relative L2 to PyTorch. inputs_sha256: the inputs `output` was computed for.
    """

    path: Path
    note: Path
    graphs: Mapping[int, str]
    files: Mapping[str, tuple[str, int]]
    parity: float
    inputs_sha256: str

    def output(self) -> NDArray[Any]:
        """The stage's output for the golden request's inputs (see `golden`)."""
        return np.load(self.note / OUTPUT, allow_pickle=False)


def stage_key(
    plan: StagePlan,
    checkpoint: Checkpoint,
    hashes: Mapping[str, str],
    batch_sizes: Sequence[int],
    precision: str,
    rewrites: Sequence[str],
    weight_format: str,
) -> str:
    """The name of the stage in the store."""
    component = plan.component
    parts: Any = {
        "stage": plan.name,
        "weights": {name: hashes[name] for name in checkpoint.weights[component]},
        "config": checkpoint.configs[component],
        "scheduler": checkpoint.configs["scheduler"],
        "loras": [] if component == "vae" else [(hashes[str(lora.path)], lora.scale) for lora in checkpoint.loras],
        "batch_sizes": sorted(batch_sizes),
        "precision": precision,
        "rewrites": list(rewrites),
        "weight_format": weight_format,
        "sources": source_hashes(*_SOURCES, *map(rewrite_module, rewrites)),
        "packages": {name: version(name) for name in _PACKAGES},
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{plan.name}-{digest[:20]}"


def find(store: Path, key: str) -> StoredStage | None:
    """The stored stage if it is there and whole; a damaged one is removed."""
    path = store / key  # the note
    try:
        data = json.loads((path / MANIFEST).read_bytes())
        stage = StoredStage(
            Path(data["files_at"]),
            path,
            {int(size): name for size, name in data["graphs"].items()},
            {name: (entry["sha256"], entry["size"]) for name, entry in data["files"].items()},
            data["parity"],
            data["inputs_sha256"],
        )
        paths = [*(stage.path / name for name in stage.files), path / OUTPUT]
        digests = [*(digest for digest, _ in stage.files.values()), data["output_sha256"]]
        whole = [sha256_file(one) for one in paths] == digests
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if whole:
        return stage
    shutil.rmtree(path, ignore_errors=True)
    return None


def publish(
    store: Path,
    key: str,
    partial: Path,
    *,
    graphs: Mapping[int, str],
    parity: float,
    inputs_sha256: str,
    output: NDArray[Any],
) -> StoredStage:
    """Move a finished directory into the store under its key."""
    found = {file.name: (sha256_file(file), file.stat().st_size) for file in sorted(partial.iterdir())}
    np.save(partial / OUTPUT, output, allow_pickle=False)
    data = {
        "files_at": str((store / key).resolve()),
        "graphs": {str(size): name for size, name in graphs.items()},
        "files": {name: {"sha256": digest, "size": size} for name, (digest, size) in found.items()},
        "parity": parity,
        "inputs_sha256": inputs_sha256,
        "output_sha256": sha256_file(partial / OUTPUT),
    }
    (partial / MANIFEST).write_text(json.dumps(data, indent=1))
    shutil.rmtree(store / key, ignore_errors=True)
    partial.replace(store / key)
    return StoredStage(store / key, store / key, graphs, found, parity, inputs_sha256)


def hand_over(stage: StoredStage, directory: Path) -> None:
    """The stage's files lie in `directory` now, in a bundle: note it, and drop the store's own."""
    data = json.loads((stage.note / MANIFEST).read_bytes()) | {"files_at": str(directory.resolve())}
    with atomic_write(stage.note / MANIFEST) as file:
        file.write(json.dumps(data, indent=1).encode())
    for name in stage.files:
        (stage.note / name).unlink(missing_ok=True)
