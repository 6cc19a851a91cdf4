"""Small things that stand in the scenery: flowers, pines, palms, peaks, towers. Sizes and places are the caller's."""

from __future__ import annotations

import numpy as np

from training.tiny.canvas import Canvas
from training.tiny.palette import RGB, mix, rgb
from training.tiny.shapes import box, curve, ellipse, line, polygon, star, stroke


def flower(c: Canvas, x: float, y: float, size: float, petals: RGB) -> None:
    for angle in np.arange(5) * 2 * np.pi / 5 - np.pi / 2:
        petal = ellipse(x + 0.6 * size * np.cos(angle), y + 0.6 * size * np.sin(angle), 0.5 * size, corners=16)
        c.fill(petal, petals)
    c.fill(ellipse(x, y, 0.36 * size, corners=16), rgb("#f6b62e"))


def tuft(c: Canvas, x: float, y: float, size: float, colour: RGB) -> None:
    for lean in (-0.45, 0.0, 0.45):
        foot = x + 0.4 * lean * size
        c.fill(polygon((foot - 0.16 * size, y), (x + lean * size, y - size), (foot + 0.16 * size, y)), colour)


def peak(c: Canvas, top: tuple[float, float], left: tuple[float, float], right: tuple[float, float], tone: RGB) -> None:
    """A mountain with a cap of snow. Its left flank is lit."""
    c.fill(polygon(top, left, right), tone)
    c.fill(polygon(top, (top[0] + 0.05 * (right[0] - left[0]), left[1]), right), mix(tone, rgb("#41598f"), 0.4))
    snow_line = [np.array(top) + 0.34 * (np.array(foot) - np.array(top)) for foot in (left, right)]
    height = left[1] - top[1]
    steps = ((0.0, 0.0), (0.25, 0.07), (0.4, -0.05), (0.6, 0.06), (0.78, -0.04), (1.0, 0.0))
    rim = [(1 - s) * snow_line[0] + s * snow_line[1] + (0, drop * height) for s, drop in steps]
    c.fill(np.array([top, *rim]), rgb("#ffffff"))
    c.fill(np.array([top, *rim[3:]]), rgb("#d3e1f3"))


def pine(c: Canvas, x: float, y: float, height: float) -> None:
    for level, tone in ((0.0, "#2f6b6b"), (0.26, "#37807a"), (0.52, "#43958a")):
        reach, foot = height * 0.3 * (1 - 0.8 * level), y - height * level
        c.fill(polygon((x, foot - 0.48 * height), (x - reach, foot), (x + reach, foot)), rgb(tone))


def mesa(c: Canvas, x: float, top: float, reach: float, foot: float) -> None:
    shoulder = 0.7 * reach
    c.fill(polygon((x - reach, foot), (x - shoulder, top), (x + shoulder, top), (x + reach, foot)), rgb("#b5526a"))
    shade = polygon((x + 0.3 * reach, foot), (x + 0.3 * reach, top), (x + shoulder, top), (x + reach, foot))
    c.fill(shade, rgb("#9a4263"))


def cactus(c: Canvas, x: float, y: float, height: float) -> None:
    green = rgb("#3f7d5c")
    c.fill(line(x, y, x, y - height, width=26), green)
    for arm, elbow in ((x - 34, y - 0.52 * height), (x + 34, y - 0.42 * height)):
        c.fill(line(x, elbow, arm, elbow, width=18), green)
        c.fill(line(arm, elbow, arm, elbow - 0.32 * height, width=18), green)


def crescent(c: Canvas, x: float, y: float, radius: float, colour: RGB) -> None:
    """A moon whose dark part lies to the upper right."""
    angle = np.linspace(-0.25, 1.75, 96) * np.pi
    disc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    dark_centre, dark_radius = np.array([0.4, -0.4]), 0.9
    lit = disc[np.linalg.norm(disc - dark_centre, axis=1) > dark_radius]
    dark = dark_centre + dark_radius * disc
    rim = dark[np.linalg.norm(dark, axis=1) < 1]
    c.fill(np.array([x, y]) + radius * np.concatenate([lit, rim[::-1]]), colour)


def palm(c: Canvas, x: float, y: float, height: float) -> None:
    top_x, top_y = x - 14, y - height
    c.fill(stroke(curve((x, y), (x + 6, y - 0.5 * height), (top_x, top_y)), (24.0, 14.0)), rgb("#a9754a"))
    for reach, rise, drop in ((78, -26, 34), (60, -52, -16), (44, 6, 66)):
        for side in (-1, 1):
            tip, bend = (top_x + side * reach, top_y + drop), (top_x + side * 0.55 * reach, top_y + rise)
            leaf = [curve((top_x, top_y), bend, tip), curve(tip, (bend[0], bend[1] + 26), (top_x, top_y))]
            c.fill(np.concatenate(leaf), rgb("#3f9d6b" if drop > 0 else "#57b877"))


def starfish(c: Canvas, x: float, y: float, size: float) -> None:
    c.fill(star(x, y, size, 5, 0.45), rgb("#ef8f6c"))


def shell(c: Canvas, x: float, y: float, size: float) -> None:
    c.fill(ellipse(x, y, 0.9 * size, 0.7 * size, corners=24), rgb("#d9b27c"))
    c.fill(ellipse(x - 0.1 * size, y - 0.14 * size, 0.7 * size, 0.48 * size, corners=24), rgb("#fff8e8"))


def building(c: Canvas, x0: float, x1: float, top: float, colour: RGB) -> RGB:
    """A block down to the street, shaded on the right. Returns the shade."""
    shade = mix(colour, rgb("#4a4778"), 0.4)
    c.fill(box(x0, top, x1, 400), colour)
    c.fill(box(x1 - 13, top, x1, 400), shade)
    return shade
