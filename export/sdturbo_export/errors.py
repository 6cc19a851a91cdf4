"""Errors between a checkpoint and a bundle. The rules are those of `sdturbo.errors`."""

from __future__ import annotations

from collections.abc import Sequence

from sdturbo.errors import InvalidRequest, SDTurboError


class CheckpointError(SDTurboError):
    """A checkpoint or LoRA (low-rank adaptation) cannot be used. `faults` lists everything wrong with it."""

    exit_code = 3

    def __init__(self, where: object, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{where} cannot be used:\n{lines}")


class LicenceNotAccepted(InvalidRequest):
    """The weights' licence was not accepted, so nothing was downloaded."""


class BuildError(SDTurboError):
    """The build could not be finished: disk, memory, permissions. Finished stages stay for the next run."""


class ParityError(SDTurboError):
    """A stage or picture differs from PyTorch by more than its bound. No bundle is published."""

    exit_code = 5


class QualityError(SDTurboError):
    """Pictures in a lower precision are too far from those in float32. No bundle is published."""

    exit_code = 5


def listed(items: Sequence[str], most: int = 8) -> str:
    """The first `most` items, and the number of the others."""
    rest = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + rest
