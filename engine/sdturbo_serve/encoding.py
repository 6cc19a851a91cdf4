"""Pictures as files. Every format carries `parameters`, the text that says how the picture was made, and the model's mark.

PNG is written here with ISA-L, Intel's library for deflate, because Pillow's PNG takes as long as a fast GPU takes to draw.
CPU time and size per 512x512 picture of the embedded model, plain / with film grain, by `python -m benchmarks.encoders` on one
core of an AMD EPYC with isal 1.9.1 and Pillow 13:

PNG, ISA-L level 1, filter Up      1.8 / 1.9 ms   304 / 489 kB    (filter Sub 320 / 487 kB, no filter 555 / 694 kB)
PNG, ISA-L level 3, filter Up      2.2 / 2.1 ms   313 / 496 kB
PNG, Pillow level 1              15.8 / 24.0 ms   298 / 524 kB
PNG, Pillow level 6, its default 65.9 / 39.1 ms   249 / 467 kB
JPEG quality 90                    0.6 / 0.6 ms     40 / 56 kB
WebP quality 80, method 0          3.8 / 4.3 ms     20 / 23 kB    (method 2 6.2 / 7.5 ms, method 4 15.7 / 17.7 ms, 14 kB)
"""

from __future__ import annotations

import io
import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from sdturbo.image import ITXT, ContentCredentials, Format, parameters_of, write_image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # PNG's filter type: each byte less the one above it, mod 256


def encode(
    picture: Image.Image,
    output_format: Format,
    quality: int | None = None,
    *,
    metadata: bool = True,
    credentials: ContentCredentials | None = None,
) -> bytes:
    """An RGB picture as a file's bytes. quality: 0 to 100, for JPEG and WebP. metadata, credentials: as of `save_image`."""
    if output_format == "png":
        file = _png(np.asarray(picture, np.uint8), parameters_of(picture) if metadata else "")
        return file if credentials is None else credentials.sign(file, output_format)
    written = io.BytesIO()
    write_image(picture, written, output_format, quality, metadata=metadata, credentials=credentials)
    return written.getvalue()


def _png(pixels: NDArray[np.uint8], parameters: str) -> bytes:
    """A PNG file of uint8 (H, W, 3), after the PNG specification, third edition."""
    height, width, _ = pixels.shape
    flat = pixels.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    text = PngImagePlugin.PngInfo()
    if parameters:
        text.add_text("parameters", parameters)  # tEXt, or iTXt for text beyond Latin-1
    parts = [
        _SIGNATURE,
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB, not interlaced
        *(_chunk(kind, data) for kind, data, _ in text.chunks),
        _MARK,
        _chunk(b"IDAT", isal_zlib.compress(rows, 1)),
        _chunk(b"IEND", b""),
    ]
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind)))


_MARK = _chunk(b"iTXt", ITXT)
