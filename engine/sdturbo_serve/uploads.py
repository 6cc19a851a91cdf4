"""Files of images from clients. An image that is too large is refused before it is decoded."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image, UnidentifiedImageError

from sdturbo.errors import InvalidRequest
from sdturbo.image import read_image


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded image of a PNG, JPEG or WebP file, upright, in its own mode and size. Raises InvalidRequest."""
    limit = f"At most {max_pixels / 1e6:g} megapixels are accepted."
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"Got {len(data)} bytes. Expected a PNG, JPEG or WebP image.") from error
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
