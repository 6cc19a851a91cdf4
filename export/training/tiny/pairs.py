"""Batches for the UNet: latents of a render, noise that holds its layout, a prompt that describes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.tiny.latents import LatentFile
from training.tiny.layout import LATENTS, noise_from_layout
from training.tiny.prompts import Prompts, is_usual
from training.tiny.render import subject_area
from training.tiny.renders import Renders
from training.tiny.subjects import SUBJECTS

SUBJECT_WEIGHT = 2.0  # against 1 elsewhere
VAGUE = 0.08  # of the prompts name no subject


@dataclass(frozen=True, slots=True)
class Batch:
    """latents, noise: float32 (n, 4, 64, 64). ids: int64 (n, 77). weights: float32 (n, 1, 64, 64), of mean 1 each.

    subjects: float32 (n, 1, 64, 64), the share of each place that the subject covers.
    """

    latents: Tensor
    noise: Tensor
    ids: Tensor
    weights: Tensor
    subjects: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        parts = (self.latents, self.noise, self.ids, self.weights, self.subjects)
        moved = [part.to(device, non_blocking=True) for part in parts]
        return Batch(_nhwc(moved[0]), _nhwc(moved[1]), *moved[2:])


class Pairs:
    """The first renders of a file with their latents, drawn at random with ever new noise and words."""

    def __init__(self, renders: Renders, latents: LatentFile, prompts: Prompts) -> None:
        self._latents, self._prompts = latents.read(), prompts
        self._scenes = [renders.scene(i) for i in range(len(self._latents))]
        self._usual = [i for i, scene in enumerate(self._scenes) if is_usual(scene)]
        self._weights = {subject: subject_weights(subject) for subject in SUBJECTS}
        self._areas = {subject: subject_area(subject, LATENTS)[None] for subject in SUBJECTS}

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        vague = rng.random(count) < (VAGUE if self._usual else 0)
        chosen = np.where(vague, rng.choice(self._usual or [0], count), rng.integers(len(self._scenes), size=count))
        scenes = [self._scenes[i] for i in chosen]
        ids = [self._prompts.ids(self._prompts.of(s, rng, vague=bool(v))) for s, v in zip(scenes, vague, strict=True)]
        return Batch(
            torch.from_numpy(self._latents[chosen].astype(np.float32)),
            torch.from_numpy(np.stack([noise_from_layout(scene.layout, rng) for scene in scenes])),
            torch.from_numpy(np.stack(ids)),
            torch.from_numpy(np.stack([self._weights[scene.subject] for scene in scenes])),
            torch.from_numpy(np.stack([self._areas[scene.subject] for scene in scenes])),
        )


def subject_weights(subject: str) -> np.ndarray:
    """float32 (1, 64, 64) of mean 1: SUBJECT_WEIGHT times as much where the subject is."""
    weights = 1 + (SUBJECT_WEIGHT - 1) * subject_area(subject, LATENTS)
    return (weights / weights.mean())[None]


def _nhwc(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)
