"""One picture in the queue, and the same picture drawn.

In the server a *picture* is drawn by the engine, and an *image* comes from a client as the start of a picture.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo import Result
from sdturbo.bundle.description import Size
from sdturbo.image import Mask


def size_text(size: Size) -> str:
    """`768x512`, width x height, as OpenAI's API names sizes."""
    return f"{size[1]}x{size[0]}"


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A picture and how it was made. dropped: the end of the prompt that the model did not see.

    wait_ms: milliseconds in the queue. batch: the pipeline's result for all pictures of its batch.
    """

    picture: Image.Image
    seed: int
    dropped: str
    wait_ms: float
    batch: Result


@dataclass(eq=False, slots=True)
class QueuedPicture:
    """A place in the queue. arrived: seconds of `time.perf_counter`.

    image: uint8 (H, W, 3) in the picture's size. mask: bool (H, W), True where the image is drawn anew. None is everywhere.
    size: height and width of the picture, one of the bundle's. None is its default.
    second_prompt: the other end of a blend, if the picture is drawn from one. blend: the place between them, 0 at `prompt`.
    drawn: the picture to come. Cancelling this future gives the picture up, in the queue and between two stages.
    """

    prompt: str
    seed: int
    steps: int
    image: NDArray[np.uint8] | None = None
    strength: float | None = None
    mask: Mask | None = None
    size: Size | None = None
    second_prompt: str | None = None
    blend: float = 0.0
    drawn: Future[DrawnPicture] = field(default_factory=Future[DrawnPicture])
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def prompts(self) -> list[str]:
        """The prompt, and the second one if there is any."""
        return [self.prompt] if self.second_prompt is None else [self.prompt, self.second_prompt]

    def goes_with(self, other: QueuedPicture) -> bool:
        """Whether one call can draw both. A call has one size, start image, mask, strength and number of steps.

        It has prompts or blends of prompts, not both.
        """
        same_start = self.image is other.image and self.mask is other.mask
        settings, others = ((one.steps, one.strength, one.size, len(one.prompts)) for one in (self, other))
        return same_start and settings == others


@dataclass(frozen=True, slots=True)
class AllCancelled:
    """The cancellation of a batch. It is set once all of its pictures are given up."""

    batch: tuple[QueuedPicture, ...]

    def is_set(self) -> bool:
        return all(queued.drawn.cancelled() for queued in self.batch)
