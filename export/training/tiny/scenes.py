"""All that can be drawn: a subject of a colour in a place, and the noise's layout for all the rest.

One eighth of the combinations is held out of training. Every pair of words still occurs in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from training.tiny.layout import F32, layout_from_seed
from training.tiny.palette import TONES
from training.tiny.scenery import SCENERY
from training.tiny.subjects import SUBJECTS


class Combination(NamedTuple):
    """The content of a caption: keys of SUBJECTS, TONES and SCENERY."""

    subject: str
    colour: str
    scene: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a picture shows. layout: float32 (16, 16, 4), rows, columns, channels, about N(0, 1)."""

    subject: str
    colour: str
    scene: str
    layout: F32


def scene_from_seed(what: Combination, seed: int) -> Scene:
    """The scene that the engine is to draw for this seed."""
    return Scene(*what, layout_from_seed(seed))


def _combinations(*, held_out: bool) -> tuple[Combination, ...]:
    """Those with (i + 3j + k) mod 8 = 7, or the others: i, j, k are the places of subject, colour and scene.

    Of the six or eight combinations that share two words, at most one is held out.
    """
    return tuple(
        Combination(subject, colour, scene)
        for i, subject in enumerate(SUBJECTS)
        for j, colour in enumerate(TONES)
        for k, scene in enumerate(SCENERY)
        if ((i + 3 * j + k) % 8 == 7) == held_out
    )


TRAINING = _combinations(held_out=False)
HELD_OUT = _combinations(held_out=True)
