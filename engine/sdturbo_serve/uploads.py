"""Files of images from clients. An image that is too large is refused before it is decoded."""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import io
from functools import cache

from PIL import Image, UnidentifiedImageError, features

from sdturbo.errors import InvalidRequest
from sdturbo.image import read_image

_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that this installation reads. HEIF, with HEIC, needs the library pillow-heif."""
    reads_heif = importlib.util.find_spec("pillow_heif") is not None
    if reads_heif:
        importlib.import_module("pillow_heif").register_heif_opener()
    optional = {"AVIF": features.check("avif"), "HEIF": reads_heif}
    return ("PNG", "JPEG", "WEBP", "GIF", *(name for name, is_there in optional.items() if is_there))


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded image of a file of `readable_formats`, upright, in its own mode and size. Raises InvalidRequest.

    Of a moving picture it is the first frame.
    """
    formats = readable_formats()
    limit = f"At most {max_pixels / 1e6:g} megapixels are accepted."
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        *others, last = formats
        hint = " HEIC needs sdturbo's extra `heif` on the server." if data[4:12] in _HEIC else ""
        text = f"Got {len(data)} bytes. Expected an image as {', '.join(others)} or {last}.{hint}"
        raise InvalidRequest(text) from error
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"The image is too large. {limit}") from error
    except Exception as error:  # Pillow's parsers also raise SyntaxError, struct.error, OSError and others
        raise InvalidRequest(f"The image cannot be read: {error}. Is the file complete?") from error
    if image.width * image.height > max_pixels:
        raise InvalidRequest(f"The image has {image.width}x{image.height} pixels. {limit}")
    with image:
        return read_image(image)


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text, with or without "data:image/…;base64," before it. Raises InvalidRequest."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"Got text that is not base64: {error}.") from error
