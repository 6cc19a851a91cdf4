"""Flat paint at three times the size: every shape is one colour, edges come out smooth when it is scaled down."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from training.tiny.palette import RGB, mix
from training.tiny.shapes import SIDE, Points

SUPERSAMPLING = 3


class Canvas:
    """A picture of `size` × `size` pixels, painted from back to front."""

    def __init__(self, size: int) -> None:
        self._image = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def fill(self, outline: Points, colour: RGB) -> None:
        self._draw.polygon(_pixels(outline, self._image), colour)

    def gradient(self, top: RGB, bottom: RGB, height: float, *, bands: int = 96) -> None:
        """Paint the full width from the upper edge down to `height`."""
        edges = np.round(np.linspace(0, height, bands + 1) / SIDE * self._image.height)
        for i in range(bands):
            colour = mix(top, bottom, i / (bands - 1))
            self._draw.rectangle((0, edges[i], self._image.width, edges[i + 1]), colour)

    def image(self) -> Image.Image:
        """The picture at its own size, mode RGB."""
        return self._image.reduce(SUPERSAMPLING)


class Cutout:
    """A thing to lay on pictures: paint with an outline of ink around it, transparent elsewhere."""

    def __init__(self, size: int, ink: RGB) -> None:
        side = (size * SUPERSAMPLING, size * SUPERSAMPLING)
        self._paint = Image.new("RGB", side, ink)
        self._covered = Image.new("L", side)

    def fill(self, outline: Points, colour: RGB, within: Points | None = None) -> None:
        """Paint the shape, or only the part of it that lies within another."""
        mask = self._mask(outline) if within is None else ImageChops.darker(self._mask(outline), self._mask(within))
        self._paint.paste(colour, mask=mask)
        self._covered.paste(255, mask=mask)

    def image(self, outline: float) -> Image.Image:
        """Mode RGBA, at its own size. The ink reaches `outline` units beyond the paint."""
        reach = outline / SIDE * self._covered.width
        ink = self._covered
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            moved = ImageChops.offset(self._covered, round(reach * np.cos(angle)), round(reach * np.sin(angle)))
            ink = ImageChops.lighter(ink, moved)
        paint = self._paint.copy()
        paint.putalpha(ink)
        return paint.reduce(SUPERSAMPLING)

    def _mask(self, outline: Points) -> Image.Image:
        mask = Image.new("L", self._covered.size)
        ImageDraw.Draw(mask).polygon(_pixels(outline, mask), 255)
        return mask


def _pixels(outline: Points, image: Image.Image) -> list[float]:
    return (outline * (image.width / SIDE) - 0.5).ravel().tolist()
