"""Pictures in and out: images of a caller as pixels, and files that say how their picture was made.

Files are PNG, JPEG or WebP, by the suffix of their name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sdturbo.errors import InvalidRequest
from sdturbo.files import atomic_write

MAX_PIXELS = 64_000_000  # 8000 × 8000. A larger file is refused before it is decoded

Format = Literal["png", "jpeg", "webp"]
SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
QUALITY: dict[Format, int] = {"jpeg": 90, "webp": 80}  # 0 to 100
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286

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


def format_of(path: Path) -> Format:
    """The format that the name asks for, PNG without a suffix. Raises InvalidRequest for another suffix."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise InvalidRequest(f"Got {path} to write a picture to. Expected a name that ends in {', '.join(SUFFIXES)}.")
    return SUFFIXES.get(suffix, "png")


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PIL image in the format of the path's suffix (`format_of`). The file appears whole or not at all.

    Raises InvalidRequest if `image` is no PIL image, or if the path cannot be written.
    """
    _save(image, Path(path), format_of(Path(path)))


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write `image` as PNG with its `info["parameters"]`, if any, as text. The file appears whole or not at all.

    AUTOMATIC1111's web UI writes the text chunk `parameters` too, and most viewers and catalogues read it.
    Raises InvalidRequest if `image` is no PIL image, or if the path cannot be written.
    """
    _save(image, Path(path), "png")


def write_image(image: Image.Image, file: BinaryIO, output_format: Format, quality: int | None = None) -> None:
    """Write `image` with its parameters into an open file. quality: 0 to 100, of JPEG and WebP."""
    parameters = parameters_of(image)
    if output_format == "png":
        text = PngImagePlugin.PngInfo()
        if parameters:
            text.add_text("parameters", parameters)
        image.save(file, format="PNG", pnginfo=text)
        return
    chosen = QUALITY[output_format] if quality is None else quality
    image.save(file, output_format, quality=chosen, exif=_exif(parameters), method=0)  # method: of WebP alone


def parameters_of(image: Image.Image) -> str:
    """The parameters that the picture was made with, `info["parameters"]`. Without NUL, which ends a text in files."""
    return str(image.info.get("parameters") or "").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _save(image: Image.Image, path: Path, output_format: Format) -> None:
    if not isinstance(image, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got an image of type {type(image).__name__}, expected a PIL image (output_type='pil').")
    try:
        with atomic_write(path) as file:
            write_image(image, file, output_format)
    except (OSError, ValueError) as error:  # ValueError: a path without a name, a picture without pixels
        raise InvalidRequest(f"Cannot write {path}: {error}. Choose another output path or free some space.") from error


def _exif(parameters: str) -> Image.Exif:
    """EXIF UserComment with its 8 bytes of character code, as AUTOMATIC1111's web UI writes it into JPEG and WebP."""
    exif = Image.Exif()
    if parameters:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif
