"""Outlines as point arrays, float64 (n, 2), in units of a 512 x 512 picture: x to the right, y down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
SIDE = 512
_CORNER = np.linspace(0, np.pi / 2, 9)


def polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, *, corners: int = 64) -> Points:
    """A circle of radius rx, or an ellipse with semi-axes rx and ry."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([cx + rx * np.cos(angle), cy + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def star(cx: float, cy: float, radius: float, rays: int, waist: float) -> Points:
    """A star with a ray upwards. Between rays it is waist·radius wide."""
    angle = np.arange(2 * rays) * np.pi / rays - np.pi / 2
    reach = radius * np.where(np.arange(2 * rays) % 2, waist, 1.0)
    return np.stack([cx + reach * np.cos(angle), cy + reach * np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, *, radius: float = 0.0) -> Points:
    """A rectangle, its corners rounded."""
    if radius == 0:
        return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    x0, y0, x1, y1 = x0 + radius, y0 + radius, x1 - radius, y1 - radius
    angles = [_CORNER + i * np.pi / 2 for i in range(4)]
    corners = zip(angles, ((x1, y1), (x0, y1), (x0, y0), (x1, y0)), strict=True)
    return np.concatenate([np.stack([x + radius * np.cos(a), y + radius * np.sin(a)], axis=1) for a, (x, y) in corners])


def curve(*points: tuple[float, float], closed: bool = False, steps: int = 12) -> Points:
    """The Catmull-Rom spline through `points`."""
    p = np.array(points, np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate(pieces if closed else [*pieces, p[-2:-1]])


def blob(*points: tuple[float, float]) -> Points:
    """A smooth closed outline through `points`."""
    return curve(*points, closed=True)


def stroke(path: Points, width: float | tuple[float, float]) -> Points:
    """The outline of a pen of `width`, or of a width at each end, drawn along `path`. Its ends are round."""
    first, last = width if isinstance(width, tuple) else (width, width)
    radius = np.linspace(first, last, len(path)) / 2
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    fan = np.linspace(0, np.pi, 13)[1:-1, None]
    end = path[-1] + radius[-1] * (normal[-1] * np.cos(fan) + along[-1] * np.sin(fan))
    start = path[0] - radius[0] * (normal[0] * np.cos(fan) + along[0] * np.sin(fan))
    return np.concatenate([path + radius[:, None] * normal, end, (path - radius[:, None] * normal)[::-1], start])


def line(x0: float, y0: float, x1: float, y1: float, *, width: float) -> Points:
    return stroke(polygon((x0, y0), (x1, y1)), width)


def moved(points: Points, dx: float, dy: float) -> Points:
    return points + np.array([dx, dy])


def both_sides(points: Points) -> tuple[Points, Points]:
    """The outline, and its mirror image on the other side of the picture's middle."""
    return points, np.stack([SIDE - points[:, 0], points[:, 1]], axis=1)
