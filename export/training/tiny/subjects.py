"""The things that pictures show, each big, in the middle, and painted in the tones of one colour word.

Light falls from the upper left: every body has its shade on the right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.tiny.canvas import Cutout
from training.tiny.palette import (
    BLUSH,
    CREAM,
    CREAM_SHADE,
    GLASS,
    GLASS_SHADE,
    GLOW,
    INK,
    SLATE,
    SLATE_SHADE,
    STEEL,
    STEEL_SHADE,
    WOOD,
    WOOD_SHADE,
    Tones,
    rgb,
)
from training.tiny.shapes import Points, blob, both_sides, box, curve, ellipse, line, moved, polygon, stroke


def cat(c: Cutout, t: Tones) -> None:
    c.fill(stroke(curve((322, 404), (380, 396), (402, 346), (376, 300), (392, 268)), (34.0, 22.0)), t.shade)
    c.fill(stroke(curve((378, 306), (380, 290), (392, 268)), (25.0, 22.0)), t.light)
    body = blob(
        (206, 292), (176, 360), (172, 410), (196, 428), (256, 430), (316, 428), (340, 410), (336, 360), (306, 292)
    )
    c.fill(body, t.shade)
    c.fill(moved(body, -22, 0), t.base, within=body)
    c.fill(ellipse(256, 368, 44, 56), t.light, within=body)
    for x, tone in ((218, t.base), (294, t.shade)):
        c.fill(ellipse(x, 414, 38, 20), tone)
        for toe in (-12, 4):
            c.fill(line(x + toe, 414, x + toe, 428, width=6), t.dark)
    ear = blob((160, 196), (160, 128), (170, 114), (186, 120), (244, 170))
    inner = blob((174, 184), (174, 142), (180, 138), (216, 166))
    for outer, pink, tone in zip(both_sides(ear), both_sides(inner), (t.base, t.shade), strict=True):
        c.fill(outer, tone)
        c.fill(pink, BLUSH)
    head = ellipse(256, 222, 112, 88)
    c.fill(head, t.shade)
    c.fill(ellipse(242, 216, 112, 88), t.base, within=head)
    for x, length in ((232, 28), (256, 38), (280, 28)):
        c.fill(stroke(polygon((x, 128), (256 + (x - 256) * 0.7, 146 + length)), (13.0, 7.0)), t.dark, within=head)
    for x in (210, 302):
        c.fill(ellipse(x, 220, 26, 29), CREAM)
        c.fill(ellipse(x, 222, 15, 22), INK)
        c.fill(ellipse(x - 5, 212, 6), CREAM)
    for x in (236, 276):
        c.fill(ellipse(x, 266, 27, 21), t.light)
    c.fill(blob((242, 249), (270, 249), (256, 265)), BLUSH)
    for smile in both_sides(stroke(curve((256, 262), (250, 277), (234, 272)), 5)):
        c.fill(smile, INK)
    for y0, y1 in ((258, 248), (268, 275)):
        for whisker in both_sides(line(196, y0, 140, y1, width=5)):
            c.fill(whisker, t.spot)


def boat(c: Cutout, t: Tones) -> None:
    c.fill(line(250, 112, 250, 360, width=12), WOOD)
    c.fill(polygon((250, 104), (250, 138), (206, 121)), t.base)
    mainsail = np.concatenate([curve((264, 136), (324, 214), (392, 326)), curve((392, 326), (328, 338), (264, 334))])
    c.fill(mainsail, t.shade)
    c.fill(moved(mainsail, -22, 0), t.base, within=mainsail)
    c.fill(box(250, 270, 400, 288), t.spot, within=mainsail)
    jib = np.concatenate([curve((236, 158), (188, 236), (124, 326)), curve((124, 326), (180, 338), (236, 332))])
    c.fill(jib, CREAM_SHADE)
    c.fill(moved(jib, -16, 0), CREAM, within=jib)
    c.fill(line(254, 344, 394, 340, width=9), WOOD_SHADE)
    hull = np.concatenate([curve((106, 356), (256, 366), (406, 350)), curve((406, 350), (378, 408), (340, 426))])
    hull = np.concatenate([hull, curve((340, 426), (256, 430), (172, 426)), curve((172, 426), (130, 404), (106, 356))])
    c.fill(hull, t.base)
    c.fill(box(90, 398, 420, 440), t.shade, within=hull)
    c.fill(polygon((360, 340), (420, 340), (420, 440), (322, 440)), t.shade, within=hull)
    c.fill(stroke(curve((100, 369), (256, 379), (412, 363)), 12), t.spot, within=hull)
    for x in (190, 256, 322):
        c.fill(ellipse(x, 403, 11), INK)
        c.fill(ellipse(x, 403, 7), GLASS)


def house(c: Cutout, t: Tones) -> None:
    c.fill(box(320, 152, 360, 240), SLATE_SHADE)
    c.fill(box(312, 142, 368, 162, radius=4), SLATE)
    wall = polygon((148, 428), (148, 262), (256, 168), (364, 262), (364, 428))
    c.fill(wall, t.base)
    for y in range(292, 428, 34):
        c.fill(line(130, y, 380, y, width=5), t.shade, within=wall)
    c.fill(polygon((140, 290), (256, 190), (372, 290), (372, 262), (256, 158), (140, 262)), t.shade, within=wall)
    c.fill(box(334, 160, 380, 440), t.shade, within=wall)
    c.fill(stroke(polygon((118, 284), (256, 162)), 32), SLATE)
    c.fill(stroke(polygon((256, 162), (394, 284)), 32), SLATE_SHADE)
    c.fill(ellipse(256, 262, 28), t.spot)
    c.fill(ellipse(256, 262, 20), GLOW)
    for x in (190, 322):
        c.fill(box(x - 28, 308, x + 28, 368, radius=5), t.spot)
        c.fill(box(x - 21, 315, x + 21, 361), GLOW)
        c.fill(line(x, 312, x, 362, width=6), t.spot)
        c.fill(line(x - 22, 338, x + 22, 338, width=6), t.spot)
        c.fill(box(x - 34, 366, x + 34, 378, radius=4), t.dark)
    c.fill(box(226, 322, 286, 430, radius=8), t.spot)
    c.fill(box(233, 330, 279, 428), WOOD)
    c.fill(box(258, 330, 279, 428), WOOD_SHADE)
    c.fill(ellipse(268, 384, 5), GLOW)
    c.fill(box(214, 420, 298, 434, radius=3), STEEL)


def car(c: Cutout, t: Tones) -> None:
    cabin = blob((166, 318), (192, 236), (226, 206), (310, 206), (346, 236), (372, 318))
    c.fill(cabin, t.base)
    c.fill(box(324, 190, 400, 330), t.shade, within=cabin)
    glass = blob((194, 300), (208, 250), (232, 228), (306, 228), (330, 250), (344, 300), (268, 304))
    c.fill(glass, GLASS)
    c.fill(polygon((238, 190), (300, 190), (240, 330), (178, 330)), CREAM, within=glass)
    c.fill(polygon((190, 286), (360, 286), (360, 330), (190, 330)), GLASS_SHADE, within=glass)
    c.fill(line(270, 220, 270, 310, width=14), t.base)
    body = blob(
        (104, 352), (116, 306), (176, 288), (336, 288), (396, 304), (410, 352), (402, 394), (256, 398), (110, 394)
    )
    c.fill(body, t.base)
    c.fill(stroke(curve((132, 312), (256, 302), (380, 312)), 11), t.light, within=body)
    c.fill(box(90, 362, 420, 420), t.shade, within=body)
    c.fill(line(270, 316, 270, 384, width=5), t.dark)
    c.fill(line(286, 330, 310, 330, width=8), t.dark)
    c.fill(ellipse(120, 334, 17, 20), CREAM)
    c.fill(ellipse(118, 334, 11, 14), GLOW)
    c.fill(ellipse(402, 332, 9, 18), rgb("#c3343a"))
    for x in (112, 400):
        c.fill(line(x - 14, 384, x + 14, 384, width=18), STEEL)
    for x in (176, 338):
        c.fill(ellipse(x, 386, 54), t.dark, within=body)
        c.fill(ellipse(x, 390, 44), INK)
        c.fill(ellipse(x, 390, 36), SLATE_SHADE)
        c.fill(ellipse(x, 390, 23), STEEL)
        c.fill(ellipse(x, 390, 9), SLATE)


def rocket(c: Cutout, t: Tones) -> None:
    c.fill(blob((220, 366), (292, 366), (300, 396), (274, 414), (256, 440), (238, 414), (212, 396)), rgb("#ff8a1f"))
    c.fill(blob((234, 366), (278, 366), (280, 388), (256, 418), (232, 388)), rgb("#ffe56b"))
    fins = both_sides(blob((204, 268), (150, 330), (138, 404), (150, 410), (220, 356)))
    c.fill(fins[0], t.shade)
    c.fill(fins[1], t.dark)
    c.fill(box(222, 352, 290, 380, radius=6), SLATE)
    hull = np.concatenate([curve((256, 84), (300, 138), (322, 216), (318, 290), (296, 362)), polygon((216, 362))])
    hull = np.concatenate([hull, curve((216, 362), (194, 290), (190, 216), (212, 138), (256, 84))])
    c.fill(hull, t.shade)
    c.fill(moved(hull, -24, 0), t.base, within=hull)
    c.fill(stroke(curve((236, 150), (216, 210), (214, 270)), 10), t.light, within=hull)
    c.fill(box(180, 60, 330, 152), CREAM_SHADE, within=hull)
    c.fill(box(156, 60, 280, 152), CREAM, within=hull)
    c.fill(box(180, 310, 330, 328), t.spot, within=hull)
    c.fill(ellipse(256, 216, 42), STEEL)
    c.fill(ellipse(256, 216, 32), GLASS_SHADE)
    c.fill(ellipse(251, 211, 26), GLASS)
    c.fill(ellipse(242, 203, 8), CREAM)
    c.fill(ellipse(256, 284, 15), STEEL)
    c.fill(ellipse(256, 284, 9), GLASS)
    c.fill(blob((244, 336), (256, 326), (268, 336), (262, 404), (256, 410), (250, 404)), t.dark)


def balloon(c: Cutout, t: Tones) -> None:
    for x0, x1 in ((204, 226), (238, 244), (274, 268), (308, 286)):
        c.fill(line(x0, 336, x1, 392, width=5), WOOD_SHADE)
    c.fill(box(220, 386, 292, 434, radius=9), WOOD)
    c.fill(box(268, 386, 292, 434, radius=9), WOOD_SHADE)
    for y in (402, 418):
        c.fill(line(222, y, 290, y, width=4), WOOD_SHADE)
    c.fill(line(220, 388, 292, 388, width=11), CREAM_SHADE)
    bag = blob(
        (256, 80), (334, 102), (384, 174), (374, 250), (312, 340), (200, 340), (138, 250), (128, 174), (178, 102)
    )
    c.fill(bag, t.base)
    for radius, tone in ((92, t.light), (46, t.base), (16, t.light)):
        c.fill(ellipse(256, 214, radius, 160), tone, within=bag)
    for outer, inner in ((150, 92), (46, 16)):
        c.fill(np.concatenate([_right_seam(outer), _right_seam(inner)[::-1]]), t.shade, within=bag)
    c.fill(stroke(curve((110, 238), (256, 268), (402, 238)), 18), t.spot, within=bag)
    c.fill(box(196, 328, 316, 346, radius=8), t.dark)


def mushroom(c: Cutout, t: Tones) -> None:
    stem = blob((214, 300), (206, 370), (190, 414), (210, 430), (302, 430), (322, 414), (306, 370), (298, 300))
    c.fill(stem, CREAM_SHADE)
    c.fill(moved(stem, -24, 0), CREAM, within=stem)
    for x in (228, 284):
        c.fill(ellipse(x, 366, 8, 11), INK)
    c.fill(stroke(curve((244, 384), (256, 393), (268, 384)), 6), INK)
    for x in (212, 300):
        c.fill(ellipse(x, 386, 11, 8), BLUSH)
    c.fill(ellipse(256, 312, 118, 30), CREAM_SHADE)
    cap = blob(
        (104, 292),
        (116, 232),
        (170, 156),
        (256, 126),
        (342, 156),
        (396, 232),
        (408, 292),
        (356, 316),
        (256, 324),
        (156, 316),
    )
    c.fill(cap, t.shade)
    c.fill(ellipse(226, 206, 156, 116), t.base, within=cap)
    for x, y, r in (
        (224, 184, 34),
        (148, 268, 25),
        (256, 270, 29),
        (318, 208, 27),
        (360, 280, 20),
        (176, 212, 13),
        (290, 148, 13),
    ):
        c.fill(ellipse(x, y, r, r * 0.86), t.spot, within=cap)


def robot(c: Cutout, t: Tones) -> None:
    c.fill(line(256, 112, 256, 150, width=9), STEEL_SHADE)
    c.fill(ellipse(256, 108, 15), t.base)
    for x in (226, 286):
        c.fill(line(x, 380, x, 412, width=24), STEEL_SHADE)
        c.fill(box(x - 30, 404, x + 26, 432, radius=12), t.shade)
    left = (
        stroke(curve((190, 296), (150, 318), (142, 362)), 24),
        ellipse(140, 372, 24),
        ellipse(140, 382, 11, 14),
        box(150, 184, 176, 236, radius=8),
    )
    parts = (both_sides(outline) for outline in left)
    for upper, hand, grip, bolt, tone in zip(*parts, (t.base, t.shade), strict=True):
        for outline, paint in ((upper, STEEL_SHADE), (hand, tone), (grip, SLATE_SHADE), (bolt, STEEL)):
            c.fill(outline, paint)
    c.fill(box(236, 254, 276, 286), STEEL_SHADE)
    for block in (box(166, 142, 346, 266, radius=34), box(184, 278, 328, 396, radius=24)):
        c.fill(block, t.shade)
        c.fill(moved(block, -20, 0), t.base, within=block)
    c.fill(box(188, 170, 324, 238, radius=24), SLATE_SHADE)
    for x in (224, 288):
        c.fill(ellipse(x, 200, 17, 19), rgb("#7cf0e4"))
        c.fill(ellipse(x - 4, 194, 6), CREAM)
    c.fill(stroke(curve((240, 222), (256, 229), (272, 222)), 6), rgb("#7cf0e4"))
    c.fill(box(208, 302, 304, 362, radius=10), CREAM)
    c.fill(ellipse(232, 332, 16), t.dark)
    c.fill(line(260, 322, 290, 322, width=9), SLATE)
    c.fill(line(260, 342, 280, 342, width=9), STEEL_SHADE)


def _right_seam(radius: float) -> Points:
    """The right side of an ellipse, which is a seam of the balloon. The left side is the seam opposite."""
    return np.roll(ellipse(256, 214, radius, 160), 16, axis=0)[:33]


# subject -> (its painter, reach of its shadow on the ground to either side)
SUBJECTS: dict[str, tuple[Callable[[Cutout, Tones], None], float]] = {
    "cat": (cat, 112),
    "boat": (boat, 120),
    "house": (house, 136),
    "car": (car, 164),
    "rocket": (rocket, 62),
    "balloon": (balloon, 62),
    "mushroom": (mushroom, 90),
    "robot": (robot, 90),
}
