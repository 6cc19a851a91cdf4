"""Stages, tokenizer, licence and a golden picture put together into a bundle directory, under a temporary name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo import save_png
from sdturbo.bundle.description import FORMAT, MANIFEST, TOKENIZER, GraphName, Size, golden_image, identity
from sdturbo.files import atomic_write, sha256_file
from sdturbo_export.exchange import link_or_copy
from sdturbo_export.options import BuildOptions
from sdturbo_export.proof.distance import bound
from sdturbo_export.proof.golden import GOLDEN
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stages import stage_definitions
from sdturbo_export.weights.checkpoint import Checkpoint
from sdturbo_export.weights.lora_files import lora_entries
from sdturbo_export.weights.tokenizer_files import tokenizer_json

if TYPE_CHECKING:
    from sdturbo_export.int8.recipe import Quantized

QUANTIZATION = "quantization.json"  # of a bundle in int8: each layer's damage, and each judging picture's score
STABILITY_NOTICE = (
    "This Stability AI Model is licensed under the Stability AI Community License, Copyright © Stability AI Ltd."
    " All Rights Reserved\n"
)
STABILITY_TERMS = """# Licence of the weights

The weights in this bundle derive from a Stability AI model. They are under the Stability AI Community License, whose text
is at https://stability.ai/license and was not part of the checkpoint this bundle was made from. If you pass on this bundle,
or offer a service with it, supply that text, keep NOTICE and show "Powered by Stability AI". Commercial use needs
registration with Stability AI. The licence ends above USD 1 million of yearly revenue.
"""


def write_bundle(
    directory: Path,
    checkpoint: Checkpoint,
    hashes: Mapping[str, str],
    stages: Mapping[str, StoredStage],
    pictures: Mapping[Size, NDArray[np.uint8]],
    options: BuildOptions,
    *,
    quantized: Quantized | None = None,
    replaces: Path,
) -> None:
    """Fill the new `directory` with a complete bundle that will replace `replaces`.

    pictures: the golden one at each size, uint8 (H, W, 3).
    """
    (directory / "onnx").mkdir(parents=True)
    for stored in stages.values():
        # a file of another bundle is copied: onnx refuses weights with several hard links
        ours = stored.path in (stored.entry.resolve(), (replaces / "onnx").resolve())
        for name in stored.files:
            (link_or_copy if ours else shutil.copyfile)(stored.path / name, directory / "onnx" / name)
    (directory / TOKENIZER).write_text(tokenizer_json(checkpoint.path / "tokenizer"), encoding="utf-8")
    write_licence(directory, checkpoint)
    for size, picture in pictures.items():
        name = GOLDEN.image if size == options.sizes[0] else golden_image(GOLDEN.image, *size)
        save_png(Image.fromarray(picture), directory / name)
    if quantized:
        report = json.dumps(quantized.report, indent=1, ensure_ascii=False)
        (directory / QUANTIZATION).write_text(report, encoding="utf-8")
    manifest = _manifest(checkpoint, hashes, stages, options) | {"files": _files(directory, stages)}
    if quantized:
        manifest["quality"] = dict(quantized.quality)
    manifest["bundle_id"] = identity(manifest)
    with atomic_write(directory / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _files(directory: Path, stages: Mapping[str, StoredStage]) -> dict[str, dict[str, Any]]:
    """Hash and size of every file in `directory`, by its path in the bundle."""
    known = {f"onnx/{name}": entry for stored in stages.values() for name, entry in stored.files.items()}
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        digest, size = known.get(name) or (sha256_file(file), file.stat().st_size)
        files[name] = {"sha256": digest, "size": size}
    return files


def _manifest(
    checkpoint: Checkpoint, hashes: Mapping[str, str], stages: Mapping[str, StoredStage], options: BuildOptions
) -> dict[str, Any]:
    """The bundle's description without its files and its id."""
    precision, weight_format = options.precision, options.weight_format
    return {
        "format": FORMAT,
        "created_by": f"sdturbo-export {version('sdturbo')}",
        "model": {
            "name": checkpoint.name,
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "decoder": checkpoint.decoder_name,
            "weights": {name: hashes[name] for names in checkpoint.weights.values() for name in names},
            "loras": lora_entries(checkpoint.loras, hashes),
        },
        "precision": precision,
        "weight_format": weight_format,
        "sizes": [{"height": height, "width": width} for height, width in options.sizes],
        "batch_sizes": list(options.batch_sizes),
        "schedule": {
            "prediction_type": checkpoint.schedule.prediction_type,
            "rows": [asdict(row) for row in checkpoint.schedule.rows],
        },
        "stages": {
            name: {
                "inputs": [asdict(spec) for spec in definition.inputs],
                "outputs": [asdict(definition.output)],
                "graphs": [_graph(graph, f"onnx/{file}") for graph, file in stages[name].graphs.items()],
                "rewrites": list(options.rewrites(name)),
            }
            for name, definition in stage_definitions(checkpoint).items()
        },
        "parity": {
            name: {"relative_l2": stored.parity, "bound": most, "backend": "onnxruntime"}
            for name, stored in stages.items()
            if np.isfinite(most := bound(name, precision, weight_format))
        },
        "golden": asdict(GOLDEN),
    }


def _graph(name: GraphName, file: str) -> dict[str, Any]:
    """A graph's entry: its name without a size that it has not, and its file."""
    return {key: value for key, value in asdict(name).items() if value} | {"file": file}


def write_licence(directory: Path, checkpoint: Checkpoint) -> None:
    """LICENSE.md of the weights, and a NOTICE: the checkpoint's own, or that of Stability's licence.

    A checkpoint without a licence file is taken for a Stability AI model, which is the stricter reading.
    """
    licences = sorted(path for path in checkpoint.path.glob("LICENSE*") if path.is_file())
    licence = licences[0].read_text(encoding="utf-8", errors="replace") if licences else STABILITY_TERMS
    notice = checkpoint.path / "NOTICE"
    if notice.is_file():
        notes = notice.read_text(encoding="utf-8", errors="replace")
    else:
        notes = STABILITY_NOTICE if "Stability AI" in licence else ""
    if checkpoint.decoder:
        notes += f"The decoder is {checkpoint.decoder_name}.\n"
        for file in sorted(path for path in checkpoint.decoder.glob("LICENSE*") if path.is_file()):
            licence += f"\n# Licence of the decoder\n\n{file.read_text(encoding='utf-8', errors='replace')}"
    (directory / "LICENSE.md").write_text(licence, encoding="utf-8")
    (directory / "NOTICE").write_text(
        f"{notes}Converted to ONNX by sdturbo from {checkpoint.source}.\n", encoding="utf-8"
    )
