"""Files of pictures: what Pillow reads back is what was drawn, and how it was made is in the file."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import encoders
from sdturbo.image.provenance import XMP
from sdturbo_serve.encoding import encode


def picture(height, width, kind):
    rng = np.random.default_rng(height * width)
    pixels = {
        "noise": lambda: rng.integers(0, 256, (height, width, 3)),
        "flat": lambda: np.full((height, width, 3), 77),
        "ramp": lambda: np.indices((height, width, 3)).sum(axis=0) % 256,
    }[kind]()
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (64, 63), (512, 512)])
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
@pytest.mark.parametrize("parameters", ["a fox\nSteps: 1", "灯台, \0 a fox"])
def test_a_png_is_whole_and_read_back_identical(size, kind, parameters):
    drawn = picture(*size, kind)
    drawn.info["parameters"] = parameters
    file = encode(drawn, "png")
    Image.open(io.BytesIO(file)).verify()  # the chunks' checksums
    read = Image.open(io.BytesIO(file))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), np.asarray(drawn))
    text = parameters.replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert read.text == {"parameters": text, "XML:com.adobe.xmp": XMP.decode()}


def test_zlib_itself_reads_the_compressed_rows():
    file = encode(picture(33, 20, "noise"), "png")
    start = file.index(b"IDAT") + 4
    length = int.from_bytes(file[start - 8 : start - 4])
    assert len(zlib.decompress(file[start : start + length])) == 33 * (1 + 3 * 20)


def test_every_encoder_that_is_compared_keeps_the_picture():
    drawn = picture(40, 30, "ramp")
    compared = encoders.encoders()
    for name in ("none", "sub", "up"):
        rows = zlib.decompress(compared[f"ISA-L level 1, {name}"](drawn))
        file = encode(drawn, "png")
        start = file.index(b"IDAT") + 4
        own = zlib.decompress(file[start : start + int.from_bytes(file[start - 8 : start - 4])])
        assert (rows == own) == (name == "up")  # the server's choice
    for name in ("Pillow png level 1", "the server's png"):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(compared[name](drawn)))), np.asarray(drawn))
    assert encoders.cost(compared["the server's jpeg"], [drawn], 1)["kb"] > 0
