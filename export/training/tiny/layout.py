"""The part of a picture that chance decides, read off the first noise: the means of the noise's blocks, in place.

The noise is (4, 64, 64) like the latents. The means of its blocks of 4 x 4 (32 x 32 pixels) have standard deviation
1/4. A layout holds four times those. The paint at (x, y) follows the layout around (x, y), so that a network that sees the
noise can draw the same in one step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdturbo.noise import TorchGenerator
from training.tiny.shapes import SIDE

F32 = NDArray[np.float32]
GRID = 16
CHANNELS = 4
LATENTS = 64
BLOCK = LATENTS // GRID


def layout_from_noise(noise: F32) -> F32:
    """Standard normal noise (..., 4, 64, 64) -> (..., 16, 16, 4): rows, columns, channels, of unit variance."""
    blocks = noise.reshape(*noise.shape[:-2], GRID, BLOCK, GRID, BLOCK).mean((-3, -1)) * BLOCK
    return np.moveaxis(blocks, -3, -1).astype(np.float32)


def layout_from_seed(seed: int) -> F32:
    """The layout (16, 16, 4) of the noise that the engine draws for this seed and its first image."""
    return layout_from_noise(TorchGenerator(seed).randn((CHANNELS, LATENTS, LATENTS)))


def noise_from_layout(layout: F32, rng: np.random.Generator) -> F32:
    """Standard normal noise (4, 64, 64) with that layout (16, 16, 4). The rest of the noise comes from `rng`."""
    noise = rng.standard_normal((CHANNELS, LATENTS, LATENTS), np.float32)
    missing = np.moveaxis(layout - layout_from_noise(noise), -1, 0) / BLOCK
    return (noise + missing.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)).astype(np.float32, copy=False)


def sample(layout: F32, x: ArrayLike, y: ArrayLike, channel: int, width: float = 0.6) -> NDArray[np.float64]:
    """The layout as a smooth field: a Gaussian mean over the blocks around each point, unit variance everywhere.

    x, y: places in the picture, 0 ... 512. They broadcast to (n,), the shape of the result. width: in blocks.
    """
    x, y = np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(y))
    across, down = _weights(x, width), _weights(y, width)
    return ((down @ layout[:, :, channel]) * across).sum(axis=1)


def sample_at(layout: F32, x: float, y: float, channel: int) -> float:
    """The field at one point, a little smoother."""
    return float(sample(layout, x, y, channel, 0.8)[0])


def _weights(place: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """(n,) -> (n, 16), each row of unit length: a sum of independent unit normals keeps unit variance."""
    offset = place[:, None] * (GRID / SIDE) - 0.5 - np.arange(GRID)
    weights = np.exp(-0.5 * (offset / width) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)
