"""Pictures in and out: images of a caller as pixels, and PNG files that say how they were made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sdturbo.errors import InvalidRequest
from sdturbo.files import atomic_write

MAX_PIXELS = 64_000_000  # 8000 × 8000. A larger file is refused before it is decoded

ImageInput = Image.Image | NDArray[Any] | str | os.PathLike[str]


def to_pixels(image: ImageInput, height: int, width: int) -> NDArray[np.uint8]:
    """An image as uint8 (1, height, width, 3), resized with Lanczos to the whole frame as diffusers does.

    image: PIL image of any mode, uint8 array (H, W, 3), or a file's path. Alpha is dropped, and the camera's rotation (EXIF)
    is applied. Raises InvalidRequest for anything else, for a truncated file and for more than 64 megapixels.
    Source: diffusers `VaeImageProcessor` (resize_mode "default") and `load_image`.
    """
    if isinstance(image, (str, os.PathLike)):
        with _open(Path(image)) as picture:
            return _frame(picture, height, width)
    if isinstance(image, Image.Image):
        return _frame(image, height, width)
    if isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InvalidRequest(
                f"Got an image array of dtype {image.dtype} and shape {image.shape}, expected uint8 (height, width, 3)"
                " with values 0-255. Convert it, or pass a PIL image."
            )
        return _frame(Image.fromarray(np.ascontiguousarray(image)), height, width)
    raise InvalidRequest(
        f"Got an image of type {type(image).__name__}, expected a PIL image, a uint8 array (H, W, 3) or a path."
    )


def _frame(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    if 0 in picture.size:
        raise InvalidRequest(f"The image has {picture.width}x{picture.height} pixels, expected at least one.")
    if picture.width * picture.height > MAX_PIXELS:
        raise InvalidRequest(
            f"The image has {picture.width}x{picture.height} pixels, at most {MAX_PIXELS / 1e6:.0f} megapixels are"
            " accepted. Scale it down first."
        )
    try:
        picture = _to_rgb(ImageOps.exif_transpose(picture))
    except InvalidRequest:
        raise
    except Exception as error:  # Pillow's decoders also raise RuntimeError, struct.error and others
        raise InvalidRequest(f"The image cannot be decoded: {error}. Is the file complete?") from error
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8)[None]


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip 16-bit grey to 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise InvalidRequest(
            f"Got an image of mode {picture.mode} (32-bit), whose white is not defined. Convert it to RGB or L first."
        )
    return picture.convert("RGB")


def parameters_of(image: Image.Image) -> str:
    """The parameters that the picture was made with, `info["parameters"]`. Without NUL, which ends a text in files."""
    return str(image.info.get("parameters") or "").replace("\0", "\N{REPLACEMENT CHARACTER}")


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write `image` as PNG with its `info["parameters"]`, if any, as text. The file appears whole or not at all.

    AUTOMATIC1111's web UI writes the text chunk `parameters` too, and most viewers and catalogues read it.
    Raises InvalidRequest if `image` is no PIL image, or if the path cannot be written.
    """
    if not isinstance(image, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got an image of type {type(image).__name__}, expected a PIL image (output_type='pil').")
    path = Path(path)
    text = PngImagePlugin.PngInfo()
    if parameters := parameters_of(image):
        text.add_text("parameters", parameters)
    try:
        with atomic_write(path) as file:
            image.save(file, format="PNG", pnginfo=text)
    except (OSError, ValueError) as error:  # ValueError: a path without a name, a picture without pixels
        raise InvalidRequest(f"Cannot write {path}: {error}. Choose another output path or free some space.") from error
