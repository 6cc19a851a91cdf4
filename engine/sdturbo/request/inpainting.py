"""Inpainting: a part of the start picture is drawn anew, the rest is led along with it from step to step.

For UNets without channels of their own for a mask, as SD-Turbo's. After each step, latents outside the mask become those of the
start picture under the same noise, as strong as the next step expects it.
Source: diffusers `StableDiffusionInpaintPipeline`, with a UNet of 4 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.keep import keep
from sdturbo.image import Mask, put_back, reduced
from sdturbo.noise import F32


@dataclass(slots=True)
class Inpainting:
    """What a request keeps of its start picture.

    mask: bool (H, W), True where pixels are drawn anew. keep_unmasked: outside it, the start picture's own pixels are put back.
    pure: drawing starts from noise alone, as with strength 1.
    The stages fill in the rest. pixels: uint8 (H, W, 3). noise, latents: float32 (N, 4, H/8, W/8), of the start picture.
    """

    mask: Mask
    keep_unmasked: bool
    pure: bool
    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    noise: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    latents: F32 = field(default_factory=lambda: np.empty(0, np.float32))

    def first(self, sigma: float) -> F32:
        """The latents of the first step, whose noise has strength sigma."""
        return self.noise * np.float32(sigma) if self.pure else self._noised(sigma)

    def after_step(self, x: F32, sigma: float) -> F32:
        """The latents x after a step, outside the mask those of the start picture. sigma: of the next step, 0 at the end."""
        anew = reduced(self.mask, *x.shape[2:])
        return keep(x, self.latents, self.noise, anew, np.float32(sigma))

    def masks(self) -> F32:
        """Where latents are drawn anew, float32 (N, 4, H/8, W/8) of 0 and 1, for a device that does the steps itself."""
        return np.broadcast_to(reduced(self.mask, *self.noise.shape[2:]), self.noise.shape)

    def finished(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The decoded pictures (N, H, W, 3) as the caller gets them."""
        return put_back(images, self.pixels, self.mask) if self.keep_unmasked else images

    def _noised(self, sigma: float) -> F32:
        return np.add(self.latents, self.noise * np.float32(sigma), dtype=np.float32)
