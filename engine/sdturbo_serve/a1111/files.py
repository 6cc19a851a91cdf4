"""Start images, masks and picture files, as AUTOMATIC1111's program reads them."""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdturbo.bundle.description import Size
from sdturbo.errors import InvalidRequest
from sdturbo.image import Mask, to_pixels
from sdturbo.request import mask_of
from sdturbo_serve.errors import refusals_name
from sdturbo_serve.uploads import decode_base64, open_image

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_COMMENT_CODES = {b"UNICODE\0": "utf-16-be", b"JIS\0\0\0\0\0": "iso2022_jp"}  # others: ASCII, or UTF-8 without a name
_LONGEST_LINE = 10_000  # characters. Settings of many scripts take 2000
_SETTING = re.compile(r'\b(\w[\w ./-]{0,99}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')  # `Steps: 4`, `Model: "a, b"`


def start_and_mask(
    image: str, mask: str | None, size: Size, max_pixels: int, *, inverted: bool
) -> tuple[NDArray[np.uint8], Mask | None]:
    """(pixels, mask) of a start image and its mask in base64, as `start_image.decode_start` gives them.

    The image's transparent pixels are white. White parts of a mask are drawn anew, or its opaque parts if it has
    transparent pixels.
    inverted: the other way round. Raises ApiError.
    """
    with refusals_name("init_images"):
        picture = open_image(decode_base64(image), max_pixels)
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        pixels = to_pixels(picture, *size)[0]
    if mask is None:
        return pixels, None
    with refusals_name("mask"):
        drawn_anew = _grey(open_image(decode_base64(mask), max_pixels))
        return pixels, mask_of(picture, ImageOps.invert(drawn_anew) if inverted else drawn_anew, size)


def text_of(data: bytes) -> str:
    """The text in a PNG, JPEG or WebP file that says how it was made, or "". Raises InvalidRequest."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            text = image.info.get("parameters")
            if isinstance(text, str):
                return text
            comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"Got {len(data)} bytes. Expected an image as PNG, JPEG or WEBP.") from error
    except Exception as error:  # Pillow's parsers raise many kinds
        raise InvalidRequest(f"The image cannot be read: {error}. Is the file complete?") from error
    if isinstance(comment, bytes):
        return comment[8:].decode(_COMMENT_CODES.get(comment[:8], "utf-8"), "replace")
    return str(comment)


def settings_of(text: str) -> dict[str, str]:
    """The parts of a text of `text_of`: "Prompt", "Negative prompt", and the settings of its last line.

    A last line of more than 10,000 characters belongs to the prompt.
    """
    *lines, last = text.strip().split("\n")
    pairs = _SETTING.findall(last) if len(last) <= _LONGEST_LINE else ()
    settings = {name.strip(): value.strip().strip('"') for name, value in pairs}
    if "Steps" not in settings:
        return {"Prompt": text.strip()} if text.strip() else {}
    prompt, mark, negative = "\n".join(lines).partition("Negative prompt:")
    return {"Prompt": prompt.strip(), **({"Negative prompt": negative.strip()} if mark else {}), **settings}


def _grey(mask: Image.Image) -> Image.Image:
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return mask.convert("L")
