"""The six places around a subject: land that never moves, and clouds, stars, flowers, windows that the noise decides.

Outlines that follow the noise were learnt only as a blur. Things that grow or light up with the noise come out sharp.
Subjects stand at y = 428 and hide the middle. `c` is the canvas, `layout` the noise's block means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

import numpy as np
from numpy.typing import NDArray

from training.tiny import props
from training.tiny.canvas import Canvas
from training.tiny.layout import F32, layout_from_seed, sample, sample_at
from training.tiny.palette import RGB, mix, rgb
from training.tiny.shapes import SIDE, Points, box, ellipse, moved, star

_ACROSS = np.linspace(-8, SIDE + 8, 89)
_AREA = 520  # beyond the right and lower edge
_LAND = layout_from_seed(3)  # of every picture


@overload
def growth(value: float, start: float, end: float) -> float: ...
@overload
def growth(value: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]: ...
def growth(value: float | NDArray[np.float64], start: float, end: float) -> float | NDArray[np.float64]:
    """0 where value <= start, 1 where value >= end, and between them 1 - (1 - t)^2, so that little stays at tiny sizes."""
    t = np.clip((value - np.float64(start)) / (end - start), 0, 1)
    return 1 - (1 - t) ** 2


def ridge(y: float, height: float, channel: int, *, width: float = 1.3) -> Points:
    """Land down to the picture's lower edge. Its upper edge strays from y by about `height`."""
    tops = y - height * sample(_LAND, _ACROSS, y, channel, width)
    return np.concatenate([np.stack([_ACROSS, tops], axis=1), [(_AREA, _AREA), (-8, _AREA)]])


def scattered(layout: F32, corner: tuple[float, float], end: float, pitch: float, channel: int) -> Iterator[Points]:
    """(x, y, value) on a fixed irregular lattice from `corner` to the right edge and down to `end`."""
    x, y = (a.ravel() for a in np.meshgrid(np.arange(corner[0], _AREA, pitch), np.arange(corner[1], end, pitch)))
    stray = np.random.default_rng(5).uniform(-0.36, 0.36, (2, x.size)) * pitch
    x, y = x + stray[0], y + stray[1]
    yield from np.stack([x, y, sample(layout, x, y, channel)], axis=1)


def clouds(c: Canvas, layout: F32, floors: tuple[float, ...], tones: tuple[RGB, RGB], *, size: float) -> None:
    """Puffs side by side on level floors, each as high as its place in the layout says. tones: lit and shaded."""
    x = np.arange(-24.0, SIDE + 25, 24)
    puffs = []
    for floor in floors:
        heights = size * growth(sample(layout, x, floor - 0.5 * size, 2, 0.8), -0.1, 1.9)
        puffs += [(px, floor, h) for px, h in zip(x, heights, strict=True) if h > 0.5]
    for lift, tone in ((0.0, tones[1]), (0.13, tones[0])):
        for px, floor, h in puffs:
            floor_y = floor - lift * h
            puff = ellipse(px - 0.5 * lift * h, floor - 0.35 * h, 14 + 0.42 * h, 0.65 * h, corners=32)
            c.fill(np.minimum(puff, (np.inf, floor_y)), tone)


def meadow(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#6cc4f4"), rgb("#e4f6fb"), 400)
    c.fill(ellipse(86, 84, 60), rgb("#a8dcf0"))
    c.fill(ellipse(86, 84, 42), rgb("#ffe48a"))
    clouds(c, layout, (80, 150, 220), (rgb("#ffffff"), rgb("#c5e4f4")), size=58)
    c.fill(ridge(286, 24, 1), rgb("#a5d9b0"))
    c.fill(ridge(332, 18, 0), rgb("#86cc7d"))
    c.fill(ridge(384, 9, 3), rgb("#b4dd72"))
    for x, y, value in scattered(layout, (40, 400), 520, 52, 0):
        props.tuft(c, x, y, 32 * growth(value, -0.2, 1.8), rgb("#86c452"))
    for i, (x, y, value) in enumerate(scattered(layout, (16, 372), 512, 52, 3)):
        props.flower(c, x, y, 18 * growth(value, -0.2, 1.6), rgb(("#ffffff", "#fff3b0", "#ffd0e0")[i % 3]))


def snow(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#7fb0de"), rgb("#dbebf7"), 400)
    clouds(c, layout, (72, 136, 200), (rgb("#f4f8fc"), rgb("#aecbe6")), size=58)
    for foot, reach, tone, centres in (
        (348, 180, "#8ea6cf", (30, 170, 300, 440)),
        (360, 126, "#6f8cbd", (-30, 96, 240, 380, 520)),
    ):
        for x in centres:
            middle = foot - 0.7 * reach
            top = foot - reach - 30 * sample_at(_LAND, x, middle, 1)
            summit = (x + 16 * sample_at(_LAND, x, middle, 3), top)
            props.peak(c, summit, (x - 0.8 * reach, foot), (x + 0.8 * reach, foot), rgb(tone))
    for x in (20, 80, 140, 372, 432, 492):
        props.pine(c, x, 384, max(112 + 30 * sample_at(_LAND, x, 330, 0), 20.0))
    c.fill(ridge(362, 12, 3), rgb("#dbe8f5"))
    c.fill(ridge(400, 9, 3), rgb("#f3f8fd"))
    c.fill(ridge(468, 10, 0), rgb("#dde9f6"))
    for x, y, value in scattered(layout, (10, 10), 512, 44, 2):
        c.fill(ellipse(x, y, 11 * growth(value, 0.2, 2.0), corners=20), rgb("#ffffff"))


def desert(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#c4476f"), rgb("#e8616a"), 180)
    for y, tone in ((96, "#ef7a66"), (168, "#f79a63"), (236, "#fdbf6d"), (290, "#ffdd8f")):
        c.fill(ridge(y, 17, 2), rgb(tone))
    clouds(c, layout, (70, 132, 194), (rgb("#ffd9b8"), rgb("#c9577a")), size=58)
    c.fill(ellipse(424, 214, 60), rgb("#ffeaa6"))
    c.fill(ellipse(424, 214, 46), rgb("#fff7d6"))
    for x, reach in ((30, 58), (146, 40), (366, 44), (478, 60)):
        props.mesa(c, x, 288 - 26 * sample_at(_LAND, x, 270, 1), reach, 360)
    c.fill(ridge(334, 13, 1), rgb("#d9844e"))
    for x in (50, 462):
        props.cactus(c, x, 396, 132 + 24 * float(np.clip(sample_at(_LAND, x, 330, 0), -2, 2)))
    c.fill(ridge(376, 11, 3), rgb("#ecaa66"))
    c.fill(ridge(462, 11, 0), rgb("#dd9452"))
    c.fill(ridge(490, 9, 3), rgb("#cb7d45"))
    for x, y, value in scattered(layout, (20, 456), 530, 52, 3):
        props.tuft(c, x, y, 34 * growth(value, -0.6, 1.6), rgb("#8f5a38"))


def night(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#15173f"), rgb("#1c1f52"), 300)
    c.fill(ridge(128, 26, 1), rgb("#2a2d6e"))
    c.fill(ridge(216, 24, 1), rgb("#3f4089"))
    for x, y, value in scattered(layout, (18, 14), 270, 42, 2):
        if np.hypot(x - 430, y - 82) > 66:
            c.fill(star(x, y, 17 * growth(value, 0.0, 1.8), 4, 0.36), rgb("#fff2b8"))
    clouds(c, layout, (130, 194, 258), (rgb("#6a6cb8"), rgb("#4d4f9c")), size=58)
    props.crescent(c, 430, 82, 46, rgb("#fdf3c8"))
    c.fill(ridge(298, 24, 0), rgb("#2c2c66"))
    c.fill(ridge(346, 18, 3), rgb("#25566f"))
    c.fill(ridge(392, 9, 0), rgb("#3a7683"))
    for x, y, value in scattered(layout, (20, 456), 530, 52, 3):
        props.tuft(c, x, y, 36 * growth(value, -0.6, 1.6), rgb("#28606f"))


def beach(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#8fdcf2"), rgb("#f2fbf4"), 262)
    c.fill(ellipse(426, 78, 44), rgb("#fff3b4"))
    clouds(c, layout, (84, 156, 228), (rgb("#ffffff"), rgb("#d3eef4")), size=58)
    c.fill(box(-8, 252, _AREA, _AREA), rgb("#2f93bd"))
    for y, tone, channel in ((280, "#3eaacb", 1), (308, "#58bfd6", 0), (336, "#7dd3de", 1)):
        c.fill(ridge(y, 9, channel, width=0.8), rgb(tone))
    shore = ridge(372, 14, 3)
    for drop, tone in ((-12, "#ffffff"), (0, "#e9cf9a"), (14, "#f6e3b4")):
        c.fill(moved(shore, 0, drop), rgb(tone))
    props.palm(c, 62, 404, 214 + 26 * sample_at(_LAND, 62, 220, 0))
    for i, (x, y, value) in enumerate(scattered(layout, (20, 456), 512, 52, 0)):
        (props.starfish, props.shell)[i % 2](c, x, y, 21 * growth(value, -0.3, 1.6))


def city(c: Canvas, layout: F32) -> None:
    c.gradient(rgb("#a9b4e0"), rgb("#fbdcd0"), 400)
    clouds(c, layout, (72, 136, 200), (rgb("#f6eef4"), rgb("#c4c1e4")), size=58)
    for i, x in enumerate(range(-26, SIDE, 56)):
        top = 206 - 38 * sample_at(_LAND, x + 28, 206, 1)
        c.fill(box(x, top, x + 56, 400), rgb(("#b9b0d6", "#aca2cc")[i % 2]))
    for i, x in enumerate(range(-36, SIDE, 73)):
        _tower(c, layout, x, rgb(("#7a76ad", "#6963a0", "#8a86ba")[i % 3]))
    for top, tone in ((386, "#cfccda"), (446, "#a4a2b4"), (456, "#77778c")):
        c.fill(box(-8, top, _AREA, _AREA), rgb(tone))
    for x in range(-10, _AREA, 88):
        c.fill(box(x, 480, x + 50, 490), rgb("#f4efdc"))


def _tower(c: Canvas, layout: F32, x: float, colour: RGB) -> None:
    """A building whose height follows the layout around its roof. Each window is as bright as the layout around it."""
    top = 262 - 46 * sample_at(_LAND, x + 36, 262, 0)
    dark = props.building(c, x, x + 73, top, colour)
    rows = np.arange(366.0, 60, -38)
    for column in (x + 17, x + 43):
        lit = growth(sample(layout, column, rows, 3), -0.6, 1.0)
        for row, share in zip(rows, lit, strict=True):
            upper = max(row - 11, top + 10)  # below the roof
            if upper < row + 11:
                c.fill(box(column - 8, upper, column + 8, row + 11), mix(dark, rgb("#ffe08c"), share))


SCENERY: dict[str, Callable[[Canvas, F32], None]] = {
    "meadow": meadow,
    "snow": snow,
    "desert": desert,
    "night": night,
    "beach": beach,
    "city": city,
}
