"""Scenes as pictures: scenery, a shadow on the ground, the subject before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.tiny.canvas import Canvas, Cutout
from training.tiny.palette import INK, TONES
from training.tiny.scenery import SCENERY
from training.tiny.scenes import Scene
from training.tiny.shapes import ellipse
from training.tiny.subjects import SUBJECTS

OUTLINE = 3.5
GROUND = 428  # where subjects stand
SHADOW = 72  # of 255


def render(scene: Scene, size: int = 512) -> NDArray[np.uint8]:
    """The picture, (size, size, 3). The same scene gives the same bytes."""
    canvas = Canvas(size)
    SCENERY[scene.scene](canvas, scene.layout)
    picture = canvas.image()
    picture.paste(INK, mask=_shadow(scene.subject, size))
    subject = _subject(scene.subject, scene.colour, size)
    picture.paste(subject, mask=subject)
    return np.asarray(picture)


def subject_area(subject: str, size: int) -> NDArray[np.float32]:
    """The share of each of size x size places that the subject covers, 0 … 1. It is the same in every picture."""
    covered = _subject(subject, next(iter(TONES)), 512).getchannel("A")
    return np.asarray(covered.resize((size, size), Image.Resampling.BOX), np.float32) / np.float32(255)


@lru_cache(maxsize=256)
def _subject(subject: str, colour: str, size: int) -> Image.Image:
    cutout = Cutout(size, INK)
    SUBJECTS[subject][0](cutout, TONES[colour])
    return cutout.image(OUTLINE)


@lru_cache(maxsize=32)
def _shadow(subject: str, size: int) -> Image.Image:
    shadow = Cutout(size, INK)
    shadow.fill(ellipse(262, GROUND, SUBJECTS[subject][1], 13), INK)
    return shadow.image(0).getchannel("A").point([covered * SHADOW // 255 for covered in range(256)])


def sheet(pictures: Sequence[NDArray[np.uint8]], columns: int, labels: Sequence[str] = ()) -> Image.Image:
    """A contact sheet: pictures (h, w, 3) of one size row by row, each above its label if there are labels."""
    height, width, _ = pictures[0].shape
    strip = 18 if labels else 0
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width, rows * (height + strip)), "white")
    draw = ImageDraw.Draw(page)
    for i, picture in enumerate(pictures):
        x, y = i % columns * width, i // columns * (height + strip)
        page.paste(Image.fromarray(picture), (x, y))
        if labels:
            draw.text((x + 4, y + height + 3), labels[i], "black")
    return page
