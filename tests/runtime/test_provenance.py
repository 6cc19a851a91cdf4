"""The mark that a model drew a picture is in every file, by two readers: Pillow, and one that walks the file's parts here."""

import ast
import io
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sdturbo import Pipeline, save_image, save_png
from sdturbo.image.provenance import XMP, MarkedImage

URI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
IPTC, RDF = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
KINDS = ("png", "jpg", "webp")


@pytest.fixture
def picture(bundle_dir):
    return Pipeline.load(bundle_dir, "null")("a fox", seed=7).images[0]


def png_packets(data):
    place = 8
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        content = data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + content)
        if kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0\0\0\0\0"):
            yield content[22:]
        place += 12 + length


def jpeg_packets(data):
    place, name = 2, b"http://ns.adobe.com/xap/1.0/\0"
    while data[place + 1] != 0xDA:  # the scan
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        content = data[place + 4 : place + 2 + length]
        if data[place + 1] == 0xE1 and content.startswith(name):
            yield content[len(name) :]
        place += 2 + length


def webp_packets(data):
    assert data[12:16] == b"VP8X"
    assert data[20] & 0b100  # its flag for XMP
    place = 12
    while place < len(data):
        kind, (length,) = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])
        if kind == b"XMP ":
            yield data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def source_type(data):
    """The digital source type of a file, with its one packet read by both readers."""
    packets = {b"\x89PNG": png_packets, b"\xff\xd8\xff\xe0": jpeg_packets, b"RIFF": webp_packets}[data[:4]]
    (packet,) = packets(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["xmp"] == packet
    (description,) = ElementTree.fromstring(packet).iter(f"{RDF}Description")
    return description.findtext(f"{IPTC}DigitalSourceType")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_picture_carries_the_mark(picture, tmp_path, kind):
    save_image(picture, tmp_path / f"ours.{kind}")
    picture.save(tmp_path / f"pillows.{kind}")
    save_image(Image.fromarray(np.asarray(picture)), tmp_path / f"array.{kind}", metadata=False)
    for path in tmp_path.iterdir():
        assert source_type(path.read_bytes()) == URI, path


def test_save_png_carries_the_mark_whatever_the_suffix(picture, tmp_path):
    save_png(picture, tmp_path / "x.picture")
    assert source_type((tmp_path / "x.picture").read_bytes()) == URI


@pytest.mark.parametrize("kind", KINDS)
def test_generate_and_walk_write_the_mark(sdturbo, tmp_path, kind):
    assert sdturbo("generate", "a fox", "--backend", "null", "--out", tmp_path / f"x.{kind}")[0] == 0
    assert sdturbo("walk", "a", "b", "--frames", 3, "--backend", "null", "--out", tmp_path / "frames")[0] == 0
    for path in (tmp_path / f"x.{kind}", *(tmp_path / "frames").iterdir()):
        assert source_type(path.read_bytes()) == URI, path


def test_standard_output_carries_the_mark(bundle_dir):
    line = [sys.executable, "-m", "sdturbo", "generate", "x", "--out", "-", "--backend", "null", "--bundle", bundle_dir]
    done = subprocess.run(line, capture_output=True, check=True)
    assert source_type(done.stdout) == URI


def test_an_inpainted_picture_carries_the_same_mark(bundle_dir, tmp_path):
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    pipe = Pipeline.load(bundle_dir, "null")
    result = pipe("a fox", np.zeros((64, 64, 3), np.uint8), mask_image=mask, num_inference_steps=2)
    save_image(result.images[0], tmp_path / "x.png")
    assert source_type((tmp_path / "x.png").read_bytes()) == URI


def test_a_callers_own_text_and_xmp_stay(picture):
    own = PngImagePlugin.PngInfo()
    own.add_text("mine", "kept")
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=own)
    assert source_type(file.getvalue()) == URI
    assert Image.open(file).text["mine"] == "kept"
    assert len(own.chunks) == 1
    own.add_itxt("XML:com.adobe.xmp", "<x/>")
    for options in ({"format": "PNG", "pnginfo": own}, {"format": "JPEG", "xmp": b"<x/>"}):
        file = io.BytesIO()
        picture.save(file, **options)
        assert Image.open(file).info["xmp"] == b"<x/>"


def test_a_marked_picture_is_a_picture(picture):
    again = pickle.loads(pickle.dumps(picture))
    assert type(again) is MarkedImage
    assert again == picture
    assert again.info["parameters"].startswith("a fox\nSteps: 1")
    plain = picture.resize((32, 32)).convert("L")
    assert (plain.size, plain.mode) == ((32, 32), "L")


@pytest.mark.parametrize("kind", ["bmp", "tiff", "gif", "ppm"])
def test_pillow_writes_other_formats_as_before(picture, tmp_path, kind):
    picture.save(tmp_path / f"x.{kind}")
    with Image.open(tmp_path / f"x.{kind}") as image:
        assert image.size == picture.size


@pytest.mark.parametrize("kind", KINDS)
def test_sd_parsers_reads_how_the_picture_was_made(picture, tmp_path, kind):
    from sd_parsers import ParserManager
    from sd_parsers.data import Generators

    save_image(picture, tmp_path / f"x.{kind}")
    read = ParserManager().parse(tmp_path / f"x.{kind}")
    assert read.generator == Generators.AUTOMATIC1111
    assert [prompt.value for prompt in read.prompts] == ["a fox"]
    (sampler,) = read.samplers
    assert (sampler.name, sampler.parameters["seed"], sampler.parameters["steps"]) == ("Euler", "7", "1")


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_reads_the_mark(picture, tmp_path, kind):
    save_image(picture, tmp_path / f"x.{kind}")
    line = ["exiftool", "-s3", "-XMP-iptcExt:DigitalSourceType", tmp_path / f"x.{kind}"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() == URI


@pytest.mark.parametrize("kind", KINDS)
def test_without_metadata_the_mark_is_all_that_a_file_says(sdturbo, tmp_path, kind):
    out = tmp_path / f"x.{kind}"
    status, _, stderr = sdturbo("generate", "a secret fox", "--no-metadata", "--out", out, "--backend", "null")
    assert status == 0
    assert (
        "do not say how they were made: prompt, seed, steps, size, model and bundle id. They do say that a model drew them."
        in stderr
    )
    assert source_type(out.read_bytes()) == URI
    assert not any(text in out.read_bytes() for text in (b"fox", "fox".encode("utf-16-be"), b"Steps", b"parameters"))


def test_walk_takes_the_same_option(sdturbo, tmp_path):
    arguments = ["--frames", 2, "--no-metadata", "--backend", "null", "--out", tmp_path]
    status, _, stderr = sdturbo("walk", "a secret fox", "a secret cat", *arguments)
    assert status == 0
    assert "--no-metadata" in stderr
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_with_metadata_nothing_is_said_of_leaving_it_out(sdturbo, tmp_path):
    assert "--no-metadata" not in sdturbo("generate", "x", "--out", tmp_path / "x.png", "--backend", "null")[2]


def test_the_packet_is_one_for_all_pictures_and_small():
    assert len(XMP) < 600
    assert XMP.startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')


def test_the_libraries_of_signatures_are_imported_in_one_file():
    engine = Path(__file__).parents[2] / "engine"
    files = set()
    for path in engine.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {name.split(".")[0] for name in named} & {"c2pa", "cryptography"}:
                files.add(path.name)
    assert files == {"credentials.py"}


def test_a_marked_picture_equals_a_plain_one_with_the_same_pixels(pipe):
    picture, other = (pipe("a cat", seed=seed).images[0] for seed in (1, 2))
    assert picture == picture.copy()
    assert picture.copy() == picture
    assert picture != other
