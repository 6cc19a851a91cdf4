"""Pictures as numbers for the autoencoder, and back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(pictures: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in channels_last, -1 … 1."""
    levels = torch.tensor(np.ascontiguousarray(pictures), device=device)
    return levels.float().permute(0, 3, 1, 2).div_(127.5).sub_(1)


def to_pictures(x: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w), -1 … 1 -> uint8 (n, h, w, 3), rounded as the engine rounds."""
    levels = (x.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """dB between two pictures."""
    error = np.square(a.astype(np.float32) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
