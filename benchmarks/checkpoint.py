"""The checkpoint that a bundle was built from, for programs and references that must draw with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.results import ROOT
from sdturbo.bundle import Bundle
from sdturbo.errors import InvalidRequest

if TYPE_CHECKING:
    from sdturbo_export.weights.checkpoint import Checkpoint


def checkpoint_of(bundle: Bundle, model: str) -> Checkpoint:
    """The checkpoint `model`. Raises InvalidRequest if the bundle was built from other files, or with LoRAs."""
    from sdturbo_export.weights.resolve import resolve

    checkpoint = resolve(model, ROOT / "build" / "checkpoints")
    loras = bundle.model.get("loras", [])
    if checkpoint.hashes() != dict(bundle.model.get("weights", {})) or loras:
        raise InvalidRequest(
            f"The bundle {bundle.path} was built from {bundle.model.get('source')} with {len(loras)} LoRAs, not from the"
            f" weights of {model} alone: other programs would not draw the same. Build it from {model}."
        )
    return checkpoint
