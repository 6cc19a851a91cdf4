"""The image that a picture starts from, and its mask: from a client's files to arrays in the bundle's size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import Size
from sdturbo.image import Mask, to_pixels
from sdturbo.request import mask_of
from sdturbo_serve.errors import refusals_name
from sdturbo_serve.uploads import open_image


def decode_start(
    image: bytes, mask: bytes | None, size: Size, max_pixels: int
) -> tuple[NDArray[np.uint8], Mask | None]:
    """Pixels uint8 (H, W, 3) of a start image, and bool (H, W), True where it is drawn anew. None means everywhere.

    image, mask: bytes of files that `open_image` reads. Without a mask, the image's transparent pixels are drawn anew.
    size: (height, width) of the pictures.
    Raises ApiError, which names the one of the two that was refused.
    """
    with refusals_name("image"):
        picture = open_image(image, max_pixels)
        pixels = to_pixels(picture, *size)[0]
        if mask is None:
            return pixels, mask_of(picture, None, size)
    with refusals_name("mask"):
        return pixels, mask_of(picture, open_image(mask, max_pixels), size)
