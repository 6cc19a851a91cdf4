"""Finished stages, by the hash of everything they were made from. An interrupted or repeated build uses them again.

A stage's graphs and weights lie in the store until a bundle holds them. Then the store notes where they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import PLAIN, GraphName, Size
from sdturbo.files import atomic_write, sha256_file
from sdturbo_export.options import BuildOptions
from sdturbo_export.rewrites import rewrite_module
from sdturbo_export.stage_store.sources import source_hashes
from sdturbo_export.stages import DEFAULT_SIZE, StageDefinition

MANIFEST = "stage.json"
OUTPUT = "output.npy"
# The first writes graphs, the second may have changed their checkpoint, and this module writes and reads the entry.
_SOURCES = ("sdturbo_export.stage_store.graphs", "sdturbo_export.weights.autoencoder_tiny", __name__)
_PACKAGES = ("torch", "diffusers", "transformers", "onnxscript", "onnx-ir")


@dataclass(frozen=True, slots=True)
class StoredStage:
    """A finished stage. `path` holds its graphs and weights, `entry` is its directory in the store.

    graphs: the files' names. files: name -> (sha256, size). parity: relative L2 distance to PyTorch.
    inputs_sha256: of the inputs that `output` was computed for.
    """

    path: Path
    entry: Path
    graphs: Mapping[GraphName, str]
    files: Mapping[str, tuple[str, int]]
    parity: float
    inputs_sha256: str

    @property
    def plain(self) -> Mapping[GraphName, str]:
        return {name: file for name, file in self.graphs.items() if name.form == PLAIN}

    def graph(self, batch_size: int, size: Size = DEFAULT_SIZE) -> Path:
        """The plain ONNX file for that batch size and size of pictures."""
        return self.path / plain_file(self.graphs, batch_size, size)

    def output(self) -> NDArray[Any]:
        """The stage's output for the golden request's inputs (see `proof.golden`)."""
        return np.load(self.entry / OUTPUT, allow_pickle=False)


def plain_file(graphs: Mapping[GraphName, str], batch_size: int, size: Size) -> str:
    """The file of the plain graph. One without a size is for every size."""
    return graphs.get(GraphName(batch_size, *size)) or graphs[GraphName(batch_size)]


def stage_key(definition: StageDefinition, hashes: Mapping[str, str], options: BuildOptions) -> str:
    """The name of the stage's entry. hashes: sha256 of each file of weights and of each LoRA."""
    checkpoint, component, rewrites = definition.checkpoint, definition.component, options.rewrites(definition.name)
    loras = () if component == "vae" else checkpoint.loras
    return key_of(
        {
            "kind": definition.name,
            "weights": {name: hashes[name] for name in checkpoint.weights[component]},
            "config": checkpoint.configs[component],
            "scheduler": checkpoint.configs["scheduler"],
            "loras": [([hashes[str(file)] for file in lora.files], lora.scale) for lora in loras],
            "graphs": [asdict(name) for name in definition.graph_names(options.batch_sizes, options.sizes)],
            "precision": options.exported_precision,
            "rewrites": rewrites,
            "weight_format": options.weight_format,
            "sources": source_hashes(*_SOURCES, *map(rewrite_module, rewrites)),
            "packages": {name: version(name) for name in _PACKAGES},
        }
    )


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of an entry that is made from `parts`, which JSON must be able to hold. It begins with their "kind"."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{parts['kind']}-{digest[:20]}"


def find(store: Path, key: str) -> StoredStage | None:
    """The stored stage if it is there and whole. A damaged entry is removed."""
    entry = store / key
    try:
        data = json.loads((entry / MANIFEST).read_bytes())
        graphs = {GraphName(**name): file for name, file in data["graphs"]}
        files = {name: (digest, size) for name, (digest, size) in data["files"].items()}
        stage = StoredStage(Path(data["files_at"]), entry, graphs, files, data["parity"], data["inputs_sha256"])
        paths = [*(stage.path / name for name in files), entry / OUTPUT]
        digests = [*(digest for digest, _ in files.values()), data["output_sha256"]]
        if [sha256_file(path) for path in paths] == digests:
            return stage
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return None


def publish(
    store: Path,
    key: str,
    partial: Path,
    *,
    graphs: Mapping[GraphName, str],
    parity: float,
    inputs: Mapping[str, NDArray[Any]],
    output: NDArray[Any],
) -> StoredStage:
    """Move the finished directory `partial` into the store under its key. output: the stage's for `inputs`."""
    files = {file.name: (sha256_file(file), file.stat().st_size) for file in sorted(partial.iterdir())}
    np.save(partial / OUTPUT, output, allow_pickle=False)
    entry = store / key
    data = {
        "files_at": str(entry.resolve()),
        "graphs": [(asdict(name), file) for name, file in graphs.items()],
        "files": files,
        "parity": parity,
        "inputs_sha256": digest(inputs),
        "output_sha256": sha256_file(partial / OUTPUT),
    }
    (partial / MANIFEST).write_text(json.dumps(data, indent=1))
    shutil.rmtree(entry, ignore_errors=True)
    partial.replace(entry)
    return StoredStage(entry, entry, graphs, files, parity, digest(inputs))


def digest(inputs: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of a stage's inputs."""
    summed = hashlib.sha256()
    for array in inputs.values():
        summed.update(np.ascontiguousarray(array).data)
    return summed.hexdigest()


def hand_over(stage: StoredStage, directory: Path) -> None:
    """Note that a bundle's `directory` holds the stage's files now, and drop the store's own."""
    data = json.loads((stage.entry / MANIFEST).read_bytes()) | {"files_at": str(directory.resolve())}
    with atomic_write(stage.entry / MANIFEST) as file:
        file.write(json.dumps(data, indent=1).encode())
    for name in stage.files:
        (stage.entry / name).unlink(missing_ok=True)
