"""Line charts of a training's log, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 900, 420, 56
COLOURS = ("#2566d8", "#de3233", "#2fa24c", "#7b3fc0")


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], *, logarithmic: bool = False) -> Image.Image:
    """Lines of points (minutes, value), each in its colour with its name above. logarithmic: for the values."""
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    points = np.array([point for line in lines.values() for point in line], np.float64).reshape(-1, 2)
    if not len(points):
        return page
    scaled = _scaled(points, logarithmic)
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    span = np.maximum(high - low, 1e-9)
    box = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    for share in np.linspace(0, 1, 5):
        x, y = MARGIN + share * box[0], HEIGHT - MARGIN - share * box[1]
        value = low[1] + share * span[1]
        draw.line((MARGIN, y, WIDTH - MARGIN, y), "#dddddd")
        draw.text((4, y - 6), f"{10**value if logarithmic else value:.4g}", "black")
        draw.text((x - 8, HEIGHT - MARGIN + 8), f"{low[0] + share * span[0]:.0f} min", "black")
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        draw.text((MARGIN + 150 * i, 20), name, colour)
        places = (_scaled(np.array(line, np.float64).reshape(-1, 2), logarithmic) - low) / span * box
        draw.line([(MARGIN + x, HEIGHT - MARGIN - y) for x, y in places], colour, 2)
    return page


def _scaled(points: np.ndarray, logarithmic: bool) -> np.ndarray:
    return np.stack([points[:, 0], np.log10(np.maximum(points[:, 1], 1e-12)) if logarithmic else points[:, 1]], axis=1)
