"""The tensors that denoiser and decoder see in real pictures of 1 to 4 steps, drawn by the float32 graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import MAX_STEPS
from sdturbo_export.proof.walk import Arrays, Visit


@dataclass(frozen=True, slots=True)
class SeededPrompt:
    """A picture to draw. steps: num_inference_steps."""

    prompt: str
    seed: int
    steps: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The stages' inputs on the way to a picture, and the picture, uint8 (H, W, 3)."""

    denoiser: tuple[Arrays, ...]
    decoder: Arrays
    picture: NDArray[np.uint8]


def seeded(prompts: Sequence[str], first_seed: int, least: int = 1) -> list[SeededPrompt]:
    """Each prompt once, and again until there are `least`. The seeds count up, the steps go round from 1 to 4."""
    count = max(len(prompts), least)
    return [SeededPrompt(prompts[i % len(prompts)], first_seed + i, 1 + i % MAX_STEPS) for i in range(count)]


def trajectory(visits: Iterable[Visit]) -> Trajectory:
    """The trajectory of a walk that ends at the decoder, at batch size 1."""
    *before, decoder = visits
    return Trajectory(
        tuple(visit.inputs for visit in before if visit.stage == "denoiser"), decoder.inputs, decoder.output[0]
    )
