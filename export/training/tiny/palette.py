"""Colours of the illustrations: the tones of each colour word, and what never changes colour."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]


def rgb(code: str) -> RGB:
    """`#rrggbb` -> (r, g, b), 0 … 255."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """(1 - share)·a + share·b, rounded to whole levels."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


@dataclass(frozen=True, slots=True)
class Tones:
    """One colour word as paint: lit side, body, shaded side, darkest parts, and the spots laid on the body."""

    light: RGB
    base: RGB
    shade: RGB
    dark: RGB
    spot: RGB


def _tones(light: str, base: str, shade: str, dark: str, spot: str = "#fff6e6") -> Tones:
    return Tones(rgb(light), rgb(base), rgb(shade), rgb(dark), rgb(spot))


TONES = {
    "red": _tones("#f4695c", "#de3233", "#b31f2d", "#7d1626"),
    "orange": _tones("#ffad52", "#f98419", "#d9620c", "#9c400b"),
    "yellow": _tones("#ffe77a", "#fbcf27", "#e0a915", "#a1750f"),
    "green": _tones("#6fce6e", "#2fa24c", "#1d7d40", "#135434"),
    "blue": _tones("#5f9df5", "#2566d8", "#1a48ab", "#122f78"),
    "purple": _tones("#a877e0", "#7b3fc0", "#5a2a98", "#3c1b6b"),
    "pink": _tones("#ffbcd6", "#f985b5", "#e05c97", "#a83a70"),
    "white": _tones("#ffffff", "#f7f5f0", "#cfd3de", "#8d94a8", "#aeb6c8"),
}

INK = rgb("#2a2440")  # outlines and pupils
CREAM = rgb("#fff6e6")
CREAM_SHADE = rgb("#ecd9bb")
WOOD = rgb("#9a6239")
WOOD_SHADE = rgb("#734426")
SLATE = rgb("#565a73")
SLATE_SHADE = rgb("#3f4259")
STEEL = rgb("#b9c0cf")
STEEL_SHADE = rgb("#8d95a8")
GLASS = rgb("#bfe6f5")
GLASS_SHADE = rgb("#8cc4de")
GLOW = rgb("#ffe08a")
BLUSH = rgb("#f29aa3")
