"""Files of pictures that say how their picture was made, and that a model drew it: PNG, JPEG or WebP."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image, PngImagePlugin

from sdturbo.errors import InvalidRequest
from sdturbo.files import atomic_write
from sdturbo.image.credentials import ContentCredentials
from sdturbo.image.provenance import with_mark

Format = Literal["png", "jpeg", "webp"]
SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
QUALITY: dict[Format, int] = {"jpeg": 90, "webp": 80}  # 0 to 100
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286


def format_of(path: Path) -> Format:
    """The format that the name asks for, PNG without a suffix. Raises InvalidRequest for another suffix."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise InvalidRequest(f"Got {path} to write a picture to. Expected a name that ends in {', '.join(SUFFIXES)}.")
    return SUFFIXES.get(suffix, "png")


def save_image(
    image: Image.Image,
    path: str | os.PathLike[str],
    *,
    metadata: bool = True,
    credentials: ContentCredentials | None = None,
) -> None:
    """Write a drawn PIL image in the format of the path's suffix (`format_of`). The file appears whole or not at all.

    It carries the mark that a model drew it (XMP, `DigitalSourceType`), whatever the arguments.
    metadata: False leaves out how the picture was made, its `info["parameters"]`. credentials: they sign the file.
    Raises InvalidRequest if `image` is no PIL image, or if the path cannot be written, and SDTurboError if it cannot be signed.
    """
    _save(image, Path(path), format_of(Path(path)), metadata, credentials)


def save_png(
    image: Image.Image,
    path: str | os.PathLike[str],
    *,
    metadata: bool = True,
    credentials: ContentCredentials | None = None,
) -> None:
    """As `save_image`, as PNG whatever the path's suffix.

    The `info["parameters"]` become the text chunk `parameters`. AUTOMATIC1111's web UI writes it too, and most viewers and
    catalogues read it.
    """
    _save(image, Path(path), "png", metadata, credentials)


def write_image(
    image: Image.Image,
    file: BinaryIO,
    output_format: Format,
    quality: int | None = None,
    *,
    metadata: bool = True,
    credentials: ContentCredentials | None = None,
) -> None:
    """Write `image` into an open file, as `save_image` does. quality: 0 to 100, of JPEG and WebP."""
    if credentials is not None:
        unsigned = io.BytesIO()
        write_image(image, unsigned, output_format, quality, metadata=metadata)
        file.write(credentials.sign(unsigned.getvalue(), output_format))
        return
    parameters, options = parameters_of(image) if metadata else "", dict[str, Any]()
    if output_format == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        if parameters:
            options["pnginfo"].add_text("parameters", parameters)
    else:
        options["quality"] = QUALITY[output_format] if quality is None else quality
        options |= {"exif": _exif(parameters), "method": 0}  # method: of WebP alone
    image.save(file, format=output_format, **with_mark(options))


def parameters_of(image: Image.Image) -> str:
    """The parameters that the picture was made with, `info["parameters"]`. Without NUL, which ends a text in files."""
    return str(image.info.get("parameters") or "").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _save(
    image: Image.Image, path: Path, output_format: Format, metadata: bool, credentials: ContentCredentials | None
) -> None:
    if not isinstance(image, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got an image of type {type(image).__name__}, expected a PIL image (output_type='pil').")
    try:
        with atomic_write(path) as file:
            write_image(image, file, output_format, metadata=metadata, credentials=credentials)
    except (OSError, ValueError) as error:  # ValueError: a path without a name, a picture without pixels
        raise InvalidRequest(f"Cannot write {path}: {error}. Choose another output path or free some space.") from error


def _exif(parameters: str) -> Image.Exif:
    """EXIF UserComment with its 8 bytes of character code, as AUTOMATIC1111's web UI writes it into JPEG and WebP."""
    exif = Image.Exif()
    if parameters:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif
