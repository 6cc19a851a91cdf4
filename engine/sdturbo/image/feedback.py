"""The last picture, zoomed and shifted, as the start of the next one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo.errors import InvalidRequest
from sdturbo.image.numbers import as_number
from sdturbo.image.pixels import ImageInput, read_image, to_pixels

SMALLEST_ZOOM, LARGEST_ZOOM = 0.25, 4.0


def feedback(image: ImageInput, *, zoom: float = 1.0, shift: tuple[float, float] = (0, 0)) -> NDArray[np.uint8]:
    """A picture as uint8 (H, W, 3) of the same size, zoomed about its middle and then shifted, for `image` of the next call.

    image: PIL image, uint8 array (H, W, 3), or a file's path. One picture of a result's `images`.
    zoom: 0.25 to 4. Above 1 the picture comes closer. shift: (right, down) in pixels, each at most the picture's size.
    What comes into view at the edges is the picture's mirror image. Without zoom and shift the pixels are unchanged.
    Raises InvalidRequest.
    """
    picture = read_image(image)
    pixels = to_pixels(picture, picture.height, picture.width)[0]
    scale = as_number(zoom)
    if not SMALLEST_ZOOM <= scale <= LARGEST_ZOOM:
        raise InvalidRequest(f"Got zoom={zoom!r:.80}, expected {SMALLEST_ZOOM} to {LARGEST_ZOOM:g}.")
    if not isinstance(shift, (tuple, list)) or len(shift) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got shift={shift!r:.80}, expected (right, down) in pixels.")
    height, width = pixels.shape[:2]
    (left, right), (top, bottom) = (_seen(size, scale, by) for size, by in zip((width, height), shift, strict=True))
    beyond = [(_beyond(-top), _beyond(bottom - height)), (_beyond(-left), _beyond(right - width)), (0, 0)]
    (above, _), (before, _), _ = beyond
    wide = Image.fromarray(np.pad(pixels, beyond, mode="symmetric"))
    box = (left + before, top + above, right + before, bottom + above)
    # Lanczos would be sharper, but its rings grow from picture to picture
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC, box=box), np.uint8)


def _seen(size: int, zoom: float, by: object) -> tuple[float, float]:
    """The part of an axis of `size` pixels that fills it after zoom and shift: first and last edge."""
    shift = as_number(by)
    if not abs(shift) <= size:  # refuses NaN too
        raise InvalidRequest(f"Got a shift by {by!r:.80} pixels, expected at most {size}, the picture's size.")
    middle = size / 2
    return middle - (middle + shift) / zoom, middle + (middle - shift) / zoom


def _beyond(length: float) -> int:
    """Whole pixels to add beyond an edge."""
    return max(0, math.ceil(length))
