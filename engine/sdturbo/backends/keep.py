"""Inpainting's arithmetic between two steps: latents outside the mask become those of the start picture under noise.

Stages know nothing of masks. Where a device runs a whole request, this is one more small piece of work on the device, beside
the engines of the stages. `KEEP` describes its tensors as those of a stage, so that a backend binds it as it binds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import Stage, TensorSpec

F32 = NDArray[np.float32]

_LATENTS = ("B", 4, "H/8", "W/8")
KEEP = Stage(
    "keep",
    inputs=(
        *(TensorSpec(name, "float32", _LATENTS) for name in ("latents", "start", "noise", "mask")),
        TensorSpec("sigma", "float32", ()),
    ),
    outputs=(TensorSpec("kept", "float32", _LATENTS),),
    graphs={},
)


@dataclass(frozen=True, slots=True)
class InpaintingRun:
    """An inpainting run's part in a program.

    sigmas: strength of the noise on the kept part, before the first step and after each step. The last is 0.
    pure: drawing starts from noise alone, as with strength 1.
    """

    sigmas: tuple[float, ...]
    pure: bool


def keep(latents: F32, start: F32, noise: F32, mask: F32, sigma: F32 | np.float32) -> F32:
    """(start + noise·sigma)·(1 - mask) + latents·mask, float32 of the shape of `latents`. Every operation rounds.

    mask: 1 where latents are drawn anew, 0 where they are kept. The sum, not a choice, so that NaN in `latents` stays visible.
    """
    noised = np.add(start, noise * np.float32(sigma), dtype=np.float32)
    return np.add(noised * (np.float32(1) - mask), latents * mask, dtype=np.float32)
