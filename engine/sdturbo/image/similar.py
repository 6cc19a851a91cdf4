"""Frames of a camera that need no drawing, because they show what the last drawn one showed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdturbo.errors import InvalidRequest
from sdturbo.image.numbers import as_number
from sdturbo.image.pixels import ImageInput, read_image, to_pixels


class SimilarFrames:
    """Says which frames of one camera are to be drawn. For one thread at a time.

    threshold: the mean absolute difference of the pixel values (0 to 255) from which on a frame counts as changed. 0 draws all.
    longest_pause: seconds after which a frame is drawn even if nothing changed. math.inf waits for a change.
    A frame is compared with the last one that was drawn, so that slow changes add up.
    Raises InvalidRequest.
    """

    def __init__(
        self,
        threshold: float = 2.0,
        longest_pause: float = 5.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= as_number(threshold) <= 255:  # refuses NaN too
            raise InvalidRequest(f"Got threshold={threshold!r:.80}, expected a difference of pixel values, 0 to 255.")
        if not as_number(longest_pause) >= 0:
            raise InvalidRequest(f"Got longest_pause={longest_pause!r:.80}, expected seconds, 0 or more.")
        self.threshold = threshold
        self.longest_pause = longest_pause
        self._clock = clock
        self._drawn: NDArray[np.uint8] | None = None
        self._drawn_at = 0.0

    def is_to_be_drawn(self, image: ImageInput) -> bool:
        """Whether to draw this frame. If so, the next frames are compared with it.

        image: PIL image, uint8 array (H, W, 3), or a file's path. A frame of another size counts as changed.
        Raises InvalidRequest for anything else.
        """
        picture = read_image(image)
        pixels = to_pixels(picture, picture.height, picture.width)[0]
        now = self._clock()
        if self._drawn is not None and now - self._drawn_at < self.longest_pause:
            same_size = pixels.shape == self._drawn.shape
            if same_size and mean_difference(pixels, self._drawn) < self.threshold:
                return False
        self._drawn, self._drawn_at = pixels.copy(), now
        return True

    def forget(self) -> None:
        """The next frame is drawn, whatever it shows: for a new prompt or seed."""
        self._drawn = None


def mean_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The mean absolute difference of two uint8 pictures of one shape, 0 to 255."""
    return float(np.mean(np.maximum(first, second) - np.minimum(first, second)))
