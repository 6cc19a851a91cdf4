"""One picture that somebody waits for: what the queue holds, and what the engine answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture and how it came about. timings_ms: of the batch it was drawn in, a stage each; wait_ms: in the queue."""

    image: Image.Image
    seed: int
    dropped: str
    timings_ms: dict[str, float]
    wait_ms: float
    batch_size: int


@dataclass(eq=False, slots=True)
class Picture:
    """A request for one picture. image: uint8 (H, W, 3) of the frame, to start from."""

    prompt: str
    seed: int
    steps: int
    image: NDArray[np.uint8] | None = None
    strength: float | None = None
    drawn: Future[Drawn] = field(default_factory=Future[Drawn])
    arrived: float = field(default_factory=time.perf_counter)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def goes_with(self, other: Picture) -> bool:
        """Whether both can be drawn in one call: the pipeline takes one start image, strength and number of steps."""
        return (self.steps, self.strength) == (other.steps, other.strength) and self.image is other.image

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()


@dataclass(frozen=True, slots=True)
class AllCancelled:
    """The cancellation of a batch: set once nobody waits for any of its pictures."""

    batch: tuple[Picture, ...]

    def is_set(self) -> bool:
        return all(one.is_cancelled for one in self.batch)
