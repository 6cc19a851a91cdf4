"""Recordings of inpainting, made with the first request for their kind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sdturbo.backends.protocols import Program, Recorded
from sdturbo.bundle.description import Size
from sdturbo.errors import BackendUnavailable

log = logging.getLogger("sdturbo")


@dataclass(frozen=True, slots=True)
class Kind:
    """rows: of the schedule. pure: it starts from noise alone."""

    rows: range
    pure: bool
    batch_size: int
    size: Size

    @property
    def title(self) -> str:
        height, width = self.size
        rows = f"from row {self.rows[0]} to {self.rows[-1]} of the schedule"
        return f"inpainting {rows}, at batch size {self.batch_size} and {width}x{height} pixels"


@dataclass(frozen=True, slots=True)
class LaterPrograms:
    """The recordings of one pipeline. It knows no way back to the pipeline, so that both are freed at once."""

    _made: dict[Kind, Program | None] = field(default_factory=dict[Kind, Program | None])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._made

    def of(self, kind: Kind, make: Callable[[Kind], Program]) -> Program | None:
        """The recording, or None if it cannot be made.

        make: records a kind, or raises BackendUnavailable, as where the device's memory is full. A kind is tried once.
        """
        if kind not in self._made:
            with self._lock:
                if kind not in self._made:
                    self._made[kind] = _try(kind, make)
        return self._made[kind]

    @property
    def lost(self) -> list[str]:
        """Titles of kinds that are not replayed."""
        made = list(self._made.items())
        return [kind.title for kind, program in made if program is None or _is_plain(program)]


def _try(kind: Kind, make: Callable[[Kind], Program]) -> Program | None:
    try:
        return make(kind)
    except BackendUnavailable as error:
        log.warning("%s: its stages run one by one, for they could not be joined (%s)", kind.title, error)
        return None


def _is_plain(program: Program) -> bool:
    return isinstance(program, Recorded) and not program.replays
