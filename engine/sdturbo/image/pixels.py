"""Images of a caller as pixels in the size of the pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdturbo.errors import InvalidRequest

MAX_PIXELS = 64_000_000  # 8000 × 8000. A larger file is refused before it is decoded

ImageInput = Image.Image | NDArray[Any] | str | os.PathLike[str]


def to_pixels(image: ImageInput, height: int, width: int) -> NDArray[np.uint8]:
    """An image as uint8 (1, height, width, 3), resized with Lanczos to the whole frame as diffusers does.

    image: PIL image of any mode, uint8 array (H, W, 3), or a file's path. Alpha is dropped, and the camera's rotation (EXIF)
    is applied. Raises InvalidRequest for anything else, for a truncated file and for more than 64 megapixels.
    Source: diffusers `VaeImageProcessor` (resize_mode "default") and `load_image`.
    """
    picture = decoded(lambda: eight_bit(read_image(image)).convert("RGB"))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8)[None]


def read_image(image: ImageInput) -> Image.Image:
    """An image in memory, upright, in its own mode and size. Takes and raises what `to_pixels` does."""
    if isinstance(image, (str, os.PathLike)):
        with _open(Path(image)) as picture:
            return upright(picture)
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InvalidRequest(
                f"Got an image array of dtype {image.dtype} and shape {image.shape}, expected uint8 (height, width, 3)"
                " with values 0-255. Convert it, or pass a PIL image."
            )
        return upright(Image.fromarray(np.ascontiguousarray(image)))
    raise InvalidRequest(
        f"Got an image of type {type(image).__name__}, expected a PIL image, a uint8 array (H, W, 3) or a path."
    )


def upright(picture: Image.Image) -> Image.Image:
    """The decoded picture, with the camera's rotation applied. Raises InvalidRequest."""
    if 0 in picture.size:
        raise InvalidRequest(f"The image has {picture.width}x{picture.height} pixels, expected at least one.")
    if picture.width * picture.height > MAX_PIXELS:
        raise InvalidRequest(
            f"The image has {picture.width}x{picture.height} pixels, at most {MAX_PIXELS / 1e6:.0f} megapixels are"
            " accepted. Scale it down first."
        )
    return decoded(lambda: ImageOps.exif_transpose(picture))


def decoded(work: Callable[[], Image.Image]) -> Image.Image:
    """The result of Pillow's `work`. Raises InvalidRequest where that fails."""
    try:
        return work()
    except InvalidRequest:
        raise
    except Exception as error:  # Pillow's decoders also raise RuntimeError, struct.error and others
        raise InvalidRequest(f"The image cannot be decoded: {error}. Is the file complete?") from error


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise InvalidRequest(
            f"The image {path} is too large: {error} At most {MAX_PIXELS / 1e6:.0f} megapixels are accepted."
        ) from error
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{path} is not an image that Pillow can read (PNG, JPEG, WebP, …).") from error
    except Exception as error:  # Pillow's decoders also raise RuntimeError, struct.error and others
        raise InvalidRequest(f"Cannot open the image {path}: {error}. Is the file complete?") from error


def eight_bit(picture: Image.Image) -> Image.Image:
    """The picture with values of 8 bits. Raises InvalidRequest for 32 bits."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip 16-bit grey to 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InvalidRequest(
            f"Got an image of mode {picture.mode} (32-bit), whose white is not defined. Convert it to RGB or L first."
        )
    return picture
