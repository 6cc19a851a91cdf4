import errno
import struct
import warnings
import zlib

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from sdturbo.errors import InvalidRequest
from sdturbo.image import save_png, to_pixels

SIZE = 64


def picture(width=SIZE, height=SIZE, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def header_only_png(width, height):
    """A PNG that announces a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@given(width=st.integers(1, 200), height=st.integers(1, 200))
def test_rgb_is_resized_as_diffusers_does(width, height):
    image = picture(width, height)
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False)
    expected = processor.preprocess(image, SIZE, SIZE).permute(0, 2, 3, 1).numpy() * 255
    pixels = to_pixels(image, SIZE, SIZE)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, SIZE, SIZE, 3))
    assert np.array_equal(pixels, expected.round())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted_to_rgb(mode):
    image = picture(mode=mode)
    assert np.array_equal(to_pixels(image, SIZE, SIZE)[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "opaque"), [("LA", "L"), ("RGBA", "RGB")])
def test_alpha_is_dropped(mode, opaque):
    image = picture(mode=mode)
    image.putalpha(7)
    assert np.array_equal(to_pixels(image, SIZE, SIZE)[0], np.asarray(picture(mode=opaque).convert("RGB")))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_high_byte(order):
    grey = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) * 15).astype(order)
    pixels = to_pixels(Image.fromarray(grey), SIZE, SIZE)[0]
    assert np.array_equal(pixels, np.stack([grey >> 8] * 3, axis=2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_grey_is_refused(mode):
    with pytest.raises(InvalidRequest, match=f"^Got an image of mode {mode} .*Convert it to RGB or L first.$"):
        to_pixels(Image.new(mode, (SIZE, SIZE)), SIZE, SIZE)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_applied(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(to_pixels(tmp_path / "turned.png", SIZE, SIZE)[0], turn(np.asarray(picture())))


def test_arrays_images_and_paths_give_the_same_pixels(tmp_path):
    picture(30, 50).save(tmp_path / "image.png")
    array = np.asarray(picture(30, 50))
    backwards = np.ascontiguousarray(array[:, ::-1])[:, ::-1]
    inputs = [picture(30, 50), array, backwards, tmp_path / "image.png", str(tmp_path / "image.png")]
    first, *others = [to_pixels(one, SIZE, SIZE).tobytes() for one in inputs]
    assert others == [first] * 4


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.array("cat"),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InvalidRequest, match="expected uint8"):
        to_pixels(array, SIZE, SIZE)


@pytest.mark.parametrize("value", [7, b"bytes", [[1, 2, 3]], object()])
def test_other_types_are_refused(value):
    with pytest.raises(InvalidRequest, match="expected a PIL image"):
        to_pixels(value, SIZE, SIZE)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_images_are_refused(size):
    with pytest.raises(InvalidRequest, match=f"{size[0]}x{size[1]}"):
        to_pixels(Image.new("RGB", size), SIZE, SIZE)


@pytest.mark.parametrize("size", [(8001, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_huge_files_are_refused_before_they_are_decoded(tmp_path, size):
    (tmp_path / "huge.png").write_bytes(header_only_png(*size))
    with warnings.catch_warnings(), pytest.raises(InvalidRequest, match="megapixels"):
        warnings.simplefilter("error")
        to_pixels(tmp_path / "huge.png", SIZE, SIZE)


@pytest.mark.parametrize("path", ["missing.png", "", ".", "/", "a\0b", "\ud800", "x" * 5000])
def test_paths_of_no_file_are_refused(path):
    with pytest.raises(InvalidRequest, match="Cannot open the image"):
        to_pixels(path, SIZE, SIZE)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_files_that_hold_no_image_are_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InvalidRequest, match="not an image that Pillow can read"):
        to_pixels(tmp_path / "file", SIZE, SIZE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    picture().save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidRequest, match=r"cannot be decoded|Cannot open|not an image"):
        to_pixels(tmp_path / "half", SIZE, SIZE)


@given(data=st.data())
def test_damaged_files_are_decoded_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "damaged"
    suffix = data.draw(st.sampled_from(["png", "jpeg", "webp", "gif", "bmp", "ppm", "dds"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(9, 7).save(file, format=suffix, **({"exif": exif} if suffix in ("png", "jpeg", "webp") else {}))
    damaged = bytearray(file.read_bytes())
    for position, value in data.draw(st.dictionaries(st.integers(0, len(damaged) - 1), st.integers(0, 255))).items():
        damaged[position] = value
    file.write_bytes(damaged)
    try:
        assert to_pixels(file, SIZE, SIZE).shape == (1, SIZE, SIZE, 3)
    except InvalidRequest as error:
        assert "image" in str(error)


def test_decoders_that_fail_in_their_own_way_are_a_typed_error(tmp_path):
    picture(8, 8).save(tmp_path / "image.dds")
    data = bytearray((tmp_path / "image.dds").read_bytes())
    data[80:84] = bytes(4)  # the pixel format's flags
    (tmp_path / "image.dds").write_bytes(data)
    with pytest.raises(InvalidRequest):
        to_pixels(tmp_path / "image.dds", SIZE, SIZE)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example(text="a\0b\nSteps: 1")
@example(text="naïve\r\nкот 👩‍👩‍👧‍👦")
def test_parameters_come_back_from_the_png(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "out.png"
    image = picture()
    image.info["parameters"] = text
    save_png(image, file)
    with Image.open(file) as read:
        assert read.info["parameters"] == text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        assert np.array_equal(np.asarray(read), np.asarray(image))


def test_a_picture_without_parameters_is_saved_without_text(tmp_path):
    save_png(picture(), tmp_path / "new/out.png")
    with Image.open(tmp_path / "new/out.png") as read:
        assert "parameters" not in read.info


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    def save(self, file, **options):
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    save_png(picture(), tmp_path / "out.png")
    old = (tmp_path / "out.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(InvalidRequest, match="No space left"):
        save_png(picture(10, 10), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == old
    assert list(tmp_path.iterdir()) == [tmp_path / "out.png"]


@pytest.mark.parametrize("name", ["file/out.png", "folder", "", "/", "a\0b", "\ud800", "x" * 5000])
def test_targets_that_cannot_be_written_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidRequest, match="Cannot write"):
        save_png(picture(), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), Image.new("CMYK", (8, 8))])
def test_pictures_that_png_cannot_hold_are_refused(tmp_path, image):
    with pytest.raises(InvalidRequest, match="Cannot write"):
        save_png(image, tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
