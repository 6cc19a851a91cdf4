"""Latents of pictures on disk: encoded once by the finished autoencoder, in any number of sittings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from training.tiny.hardware import device_of
from training.tiny.layout import CHANNELS, LATENTS
from training.tiny.pixels import to_tensor
from training.tiny.renders import Renders
from training.tiny.starts import Starts

AT_ONCE = 8
BYTES = CHANNELS * LATENTS * LATENTS * 2  # of one picture's latents


@dataclass(frozen=True, slots=True)
class LatentFile:
    """A file of float16 latents (n, 4, 64, 64), in the order of the pictures that they were made from."""

    path: Path

    def __len__(self) -> int:
        return self.path.stat().st_size // BYTES if self.path.exists() else 0

    @torch.no_grad()
    def encode(self, vae: AutoencoderKL, source: Renders | Starts, count: int) -> None:
        """Append the posterior's means of the pictures that are missing among the first `count`."""
        done = len(self)
        with ThreadPoolExecutor() as pool, self.path.open("ab") as file:
            file.truncate(done * BYTES)
            for first in range(done, count, AT_ONCE):
                pictures = list(pool.map(source.picture, range(first, min(first + AT_ONCE, count))))
                mean = vae.encode(to_tensor(np.stack(pictures), device_of(vae))).latent_dist.mean
                file.write(mean.half().contiguous().cpu().numpy().tobytes())
                file.flush()

    def read(self) -> NDArray[np.float16]:
        """All latents, (n, 4, 64, 64), in memory."""
        return np.fromfile(self.path, np.float16).reshape(-1, CHANNELS, LATENTS, LATENTS)
