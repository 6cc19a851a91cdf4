"""Pictures to start from that no caption describes: drawings, gradients, and fields that look like photographs.

Picture i of either part always looks the same. A start picture that is one flat colour needs no painting: it is the mean of any
other.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.tiny.canvas import Canvas
from training.tiny.palette import RGB
from training.tiny.shapes import SIDE, Points, blob, box, curve, ellipse, stroke

SIZE = 512
WHITE: RGB = (255, 255, 255)
OCTAVES = (2, 4, 8, 16, 32, 64, 128)  # cells across a photograph-like field
GRAIN = 3.0  # levels


@dataclass(frozen=True, slots=True)
class Starts:
    """An endless series of start pictures, drawing, gradient and photograph in turn. held_out: a series of its own."""

    held_out: bool = False

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture i, (512, 512, 3)."""
        rng = np.random.default_rng((i, self.held_out, 2))
        return (drawing, gradient, photograph)[i % 3](rng)

    def pictures(self, count: int) -> NDArray[np.uint8]:
        """The first of them, (count, 512, 512, 3)."""
        return np.stack([self.picture(i) for i in range(count)])


def drawing(rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a hand draws on a canvas: a sheet of one colour or two, patches, strokes of a pen."""
    canvas = Canvas(SIZE)
    canvas.fill(box(-8, -8, SIDE + 8, SIDE + 8), WHITE if rng.random() < 0.5 else _colour(rng))
    if rng.random() < 0.5:
        canvas.fill(box(-8, rng.uniform(200, 460), SIDE + 8, SIDE + 8), _colour(rng))
    for _ in range(rng.integers(0, 4)):
        canvas.fill(_patch(rng), _colour(rng))
    for _ in range(rng.integers(1, 7)):
        bends = rng.uniform(20, SIDE - 20, 2) + np.cumsum(rng.normal(0, 80, (rng.integers(2, 6), 2)), axis=0)
        line = curve(*((float(x), float(y)) for x, y in bends))
        canvas.fill(stroke(line, float(rng.uniform(6, 48))), _colour(rng))
    return np.asarray(canvas.image())


def gradient(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colours that run into each other between two to nine places."""
    rows, columns = rng.integers(1, 4, 2)
    corners = np.array([[_colour(rng) for _ in range(columns)] for _ in range(max(rows, 3 - columns))], np.uint8)
    return np.asarray(Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def photograph(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light and colour with the spectrum of photographs, amplitude 1/frequency, some things with soft edges, and grain."""
    light, hue = _field(rng), _field(rng)
    dark, pale, other = (np.asarray(_colour(rng), np.float32) for _ in range(3))
    share = _share(light)
    picture = dark * (1 - share) + pale * share
    picture += (other - picture) * (0.6 * _share(hue))
    for _ in range(rng.integers(0, 4)):
        inside = Canvas(SIZE)
        inside.fill(_patch(rng), WHITE)
        mask = inside.image().convert("L").filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 8))))
        cover = np.asarray(mask, np.float32)[..., None] / 255
        picture += (np.asarray(_colour(rng), np.float32) * (0.5 + _share(_field(rng))) - picture) * cover
    picture += GRAIN * rng.standard_normal(picture.shape, np.float32)
    return picture.clip(0, 255).round().astype(np.uint8)


def _field(rng: np.random.Generator) -> NDArray[np.float32]:
    """(512, 512) of about unit variance. Its amplitude falls as 1/frequency."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for cells in OCTAVES:
        values = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
        total += np.asarray(values.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / np.float32(cells)
    return total / total.std()


def _share(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """A field as shares 0 … 1, (512, 512, 1)."""
    return np.divide(1, 1 + np.exp(-1.5 * field), dtype=np.float32)[..., None]


def _patch(rng: np.random.Generator) -> Points:
    """A round, straight or irregular outline somewhere in the picture."""
    x, y = rng.uniform(60, SIDE - 60, 2)
    wide, high = rng.uniform(30, 150, 2)
    kind = rng.integers(3)
    if kind == 0:
        return ellipse(x, y, wide, high)
    if kind == 1:
        return box(x - wide, y - high, x + wide, y + high)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    reach = rng.uniform(0.5, 1, 7)
    return blob(*zip(x + wide * reach * np.cos(angles), y + high * reach * np.sin(angles), strict=True))


def _colour(rng: np.random.Generator) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, 1 - 0.9 * rng.random() ** 2)
    return round(255 * red), round(255 * green), round(255 * blue)
