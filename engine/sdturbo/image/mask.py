"""Masks of inpainting: which pixels are drawn anew, and the start picture's own pixels put back everywhere else.

Source: diffusers `StableDiffusionInpaintPipeline`, whose mask processor resizes, greys and cuts at one half.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sdturbo.errors import InvalidRequest
from sdturbo.image.pixels import ImageInput, decoded, eight_bit, read_image, upright

HALF = 128  # the first of 256 levels that diffusers rounds up to white
SOFT_EDGE = 16  # pixels: beyond them the start picture is as it was
_GROWN, _BLUR = SOFT_EDGE // 2, SOFT_EDGE // 4  # growth of the mask, then two box means, whose reach is inside it
_EXPECTED = (
    "Expected a PIL image, a path, or an array: bool (H, W), or uint8 (H, W), (H, W, 3), (H, W, 4) with values 0-255."
)

Mask = NDArray[np.bool_]


def to_mask(mask_image: ImageInput, height: int, width: int) -> Mask:
    """A mask as bool (height, width), True where pixels are drawn anew.

    mask_image: a PIL image or a file's path, of which white is drawn anew. If it has transparent pixels, these are drawn anew,
    and its colours do not count. Or an array, bool (H, W), or uint8 (H, W), (H, W, 3) or (H, W, 4) with values 0-255.
    Raises InvalidRequest for anything else, and if nothing is to be drawn anew.
    """
    picture = _read(mask_image)
    mask = _shrunk(alpha_mask(picture) or picture, height, width)
    if not mask.any():
        raise InvalidRequest(
            "Got a mask_image without white: nothing would be drawn anew. White (255, or True) or transparent is drawn anew,"
            " black is kept."
        )
    return mask


def of_alpha(image: ImageInput, height: int, width: int) -> Mask | None:
    """The mask of an image with transparent pixels, which are drawn anew. None if it has none. May be False everywhere."""
    if not isinstance(image, Image.Image) or not image.has_transparency_data:
        return None
    hidden = alpha_mask(upright(image))
    return None if hidden is None else _shrunk(hidden, height, width)


def alpha_mask(picture: Image.Image) -> Image.Image | None:
    """White where a picture is transparent, mode L. None if no pixel is more transparent than opaque."""
    if not picture.has_transparency_data:
        return None
    alpha = decoded(lambda: picture.convert("RGBA")).getchannel("A")
    hidden = alpha.point([255 - level for level in range(256)])
    return hidden if np.asarray(hidden).max() >= HALF else None


def reduced(mask: Mask, height: int, width: int) -> NDArray[np.float32]:
    """The mask for latents, float32 (height, width) of 0 and 1: of each block the first pixel, as in diffusers."""
    return mask[:: mask.shape[0] // height, :: mask.shape[1] // width].astype(np.float32)


def put_back(pictures: NDArray[np.uint8], start: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) with the pixels of `start` (H, W, 3) outside the mask.

    The edge is soft: from the mask's border outwards the drawn pixels fade, over SOFT_EDGE pixels. Beyond it and inside the
    mask nothing is mixed.
    """
    grown = Image.fromarray((_grown(mask, _GROWN) * np.uint8(255)).astype(np.uint8))
    soft = grown.filter(ImageFilter.BoxBlur(_BLUR)).filter(ImageFilter.BoxBlur(_BLUR))
    own = Image.fromarray(start)
    return np.stack([np.asarray(Image.composite(Image.fromarray(picture), own, soft)) for picture in pictures])


def _read(mask_image: ImageInput) -> Image.Image:
    if not isinstance(mask_image, np.ndarray):
        if not isinstance(mask_image, (Image.Image, str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"Got a mask_image of type {type(mask_image).__name__}. {_EXPECTED}")
        return read_image(mask_image)
    grey = mask_image.ndim == 2 and mask_image.dtype.name in ("bool", "uint8")
    coloured = mask_image.ndim == 3 and mask_image.shape[2] in (3, 4) and mask_image.dtype.name == "uint8"
    if not (grey or coloured) or 0 in mask_image.shape:
        raise InvalidRequest(
            f"Got a mask_image array of dtype {mask_image.dtype} and shape {mask_image.shape}. {_EXPECTED}"
        )
    return read_image(Image.fromarray(np.ascontiguousarray(mask_image)))


def _shrunk(picture: Image.Image, height: int, width: int) -> Mask:
    picture = eight_bit(picture)
    if picture.size != (width, height):  # Pillow takes the nearest pixel of mode 1
        picture = decoded(lambda: picture.resize((width, height), Image.Resampling.LANCZOS))
    return np.asarray(decoded(lambda: picture.convert("L"))) >= HALF


def _grown(mask: Mask, reach: int) -> Mask:
    """True within `reach` pixels of a True, along both axes."""
    height, width = mask.shape
    padded = np.pad(mask, reach)
    down = np.logical_or.reduce([padded[i : i + height] for i in range(2 * reach + 1)])
    return np.logical_or.reduce([down[:, i : i + width] for i in range(2 * reach + 1)])
