"""What denoiser and decoder really see: the tensors of requests of 1 to 4 steps, drawn by the float32 graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Session
from sdturbo.bundle.description import LATENT_SCALE, MAX_STEPS, ScheduleRow
from sdturbo.noise import TorchGenerator
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export.stages import HEIGHT, WIDTH

Arrays = dict[str, NDArray[Any]]
LATENTS = (1, 4, HEIGHT // LATENT_SCALE, WIDTH // LATENT_SCALE)


@dataclass(frozen=True, slots=True)
class Request:
    """A picture to draw: prompt, seed and num_inference_steps."""

    prompt: str
    seed: int
    steps: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The stages' inputs in the course of a request, and its picture: uint8 (H, W, 3)."""

    denoiser: tuple[Arrays, ...]
    decoder: Arrays
    picture: NDArray[np.uint8]


def requests(prompts: Sequence[str], first_seed: int, least: int = 1) -> list[Request]:
    """A request a prompt, and prompts anew until there are `least`: the seeds count up, the steps go round from 1 to 4."""
    count = max(len(prompts), least)
    return [Request(prompts[i % len(prompts)], first_seed + i, 1 + i % MAX_STEPS) for i in range(count)]


def draw(
    sessions: Mapping[str, Session],
    tokenizer: PromptTokenizer,
    schedule: Sequence[ScheduleRow],
    wanted: Sequence[Request],
) -> Iterator[Trajectory]:
    """The trajectory of each request, from sessions of text encoder, denoiser and decoder at batch size 1."""
    for request in wanted:
        rows = [i for i, row in enumerate(schedule) if row.num_inference_steps == request.steps]
        (embeds,) = sessions["text_encoder"].run({"input_ids": tokenizer(request.prompt).input_ids}).values()
        latents = TorchGenerator(request.seed).randn(LATENTS) * np.float32(schedule[rows[0]].sigma)
        seen: list[Arrays] = []
        for row in rows:
            seen.append({"latents": latents, "prompt_embeds": embeds, "step": np.array(row, np.int64)})
            (latents,) = sessions["denoiser"].run(seen[-1]).values()
        (image,) = sessions["decoder"].run({"latents": latents}).values()
        yield Trajectory(tuple(seen), {"latents": latents}, image[0])
