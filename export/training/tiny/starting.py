"""What the model is to draw from a start picture under noise: its large forms, the prompt's fine ones, the prompt's subject.

The more noise, the less is left of the start picture. What start picture and prompt agree on stays as it is, so that the
model's own pictures go through further steps unharmed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from training.tiny.layout import LATENTS

SIGMAS = (0.69, 0.93, 1.61, 2.92, 4.08)  # of the schedule's rows after the first
WIDTHS = (0.5, 0.9, 2.5, 6.0, 12.0)  # in latents: finer forms than these are the prompt's
SUBJECTS = (0.1, 0.5, 1.0, 1.0, 1.0)  # how much of the prompt's subject stands before the start picture
AROUND = 3  # latents around the subject that are the prompt's too: on another ground its outline is hard to see
FLAT, PATCHED = 0.15, 0.15  # of start pictures are one colour, or hold a patch of another


def followed(start: Tensor, drawn: Tensor, subjects: Tensor, sigma: float) -> Tensor:
    """The latents to learn, (n, 4, h, w).

    low(start) + drawn - low(drawn), and in the subject's place and a little around it, by its share, `drawn`. low is a
    Gaussian mean.

    start: latents of the start picture. drawn: of the prompt's picture. subjects: (n, 1, h, w), 0 … 1.
    """
    width = math.exp(_between(sigma, [math.log(width) for width in WIDTHS]))
    mixed = drawn + low(start - drawn, width)
    places = low(max_pool2d(subjects, 2 * AROUND + 1, stride=1, padding=AROUND), AROUND / 3)
    return torch.lerp(mixed, drawn, places * _between(sigma, SUBJECTS))


def low(x: Tensor, width: float) -> Tensor:
    """A Gaussian mean of standard deviation `width`, (n, c, h, w) -> the same. Edges go on beyond the border."""
    reach = math.ceil(3 * width)
    offset = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offset / width) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = conv2d(pad(x, (reach, reach, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    return conv2d(pad(x, (0, 0, reach, reach), mode="replicate"), kernel.mT.contiguous(), groups=x.shape[1])


def draw_starts(pictures: NDArray[np.float16], count: int, rng: np.random.Generator) -> Tensor:
    """Latents (count, 4, 64, 64) of random start pictures out of `pictures`, some made flat, some with a patch of another."""
    chosen = pictures[rng.integers(len(pictures), size=count)].astype(np.float32)
    for one in chosen:
        kind = rng.random()
        if kind < FLAT:
            one[:] = one.mean((1, 2), keepdims=True)
        elif kind < FLAT + PATCHED:
            (y, x), (high, wide) = rng.integers(0, LATENTS - 8, 2), rng.integers(8, 40, 2)
            other = pictures[rng.integers(len(pictures))]
            one[:, y : y + high, x : x + wide] = other[:, y : y + high, x : x + wide]
    return torch.from_numpy(chosen)


def _between(sigma: float, values: tuple[float, ...] | list[float]) -> float:
    """The value at sigma, on straight lines over log(sigma)."""
    return float(np.interp(math.log(sigma), np.log(SIGMAS), values))
