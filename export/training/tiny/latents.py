"""Latents of pictures on disk: encoded once by the finished autoencoder, picture by picture, in any number of sittings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from training.tiny.layout import CHANNELS, LATENTS
from training.tiny.pixels import to_tensor
from training.tiny.renders import Renders
from training.tiny.starts import Starts

BYTES = CHANNELS * LATENTS * LATENTS * 2  # of one picture's latents


@dataclass(frozen=True, slots=True)
class LatentFile:
    """A file of float16 latents (n, 4, 64, 64), in the order of the pictures that they were made from."""

    path: Path

    def __len__(self) -> int:
        return self.path.stat().st_size // BYTES if self.path.exists() else 0

    @torch.no_grad()
    def encode(self, vae: AutoencoderKL, renders: Renders | Starts, count: int) -> None:
        """Append the posterior's means of the pictures that are missing among the first `count`."""
        done = len(self)
        with self.path.open("ab") as file:
            file.truncate(done * BYTES)
            for i in range(done, count):
                mean = vae.encode(to_tensor(renders.picture(i)[None])).latent_dist.mean
                file.write(mean.half().contiguous().numpy().tobytes())
                file.flush()

    def read(self) -> NDArray[np.float16]:
        """All latents, (n, 4, 64, 64), in memory."""
        return np.fromfile(self.path, np.float16).reshape(-1, CHANNELS, LATENTS, LATENTS)
