"""The golden request, carried from stage to stage while they are built: its tensors are the parity inputs of every stage,
and its picture is stored in the bundle."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import LATENT_SCALE, Golden
from sdturbo.noise import TorchGenerator
from sdturbo_export.stages import HEIGHT, WIDTH
from sdturbo_export.weights.checkpoint import Checkpoint

GOLDEN = Golden(prompt="a photo of a cat", seed=0, num_inference_steps=1, image="golden.png", min_psnr=30.0)
_STEP = np.zeros((), np.int64)  # the row of one step


@dataclass(slots=True)
class GoldenRun:
    """Row i of the batch takes seed + i; row 0 is the golden request."""

    checkpoint: Checkpoint
    input_ids: NDArray[np.int64]
    batch_size: int
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])

    def inputs(self, stage: str) -> dict[str, NDArray[Any]]:
        """The stage's inputs, from the outputs of the stages before it."""
        if stage == "text_encoder":
            return {"input_ids": np.repeat(self.input_ids, self.batch_size, axis=0)}
        if stage == "denoiser":
            latents = self._noise(0) * np.float32(self.checkpoint.schedule.rows[0].sigma)
            return {"latents": latents, "prompt_embeds": self.outputs["text_encoder"], "step": _STEP}
        if stage == "decoder":
            return {"latents": self.outputs["denoiser"]}
        image = np.stack([self.picture(row) for row in range(self.batch_size)])
        return {"image": image, "posterior_noise": self._noise(1), "noise": self._noise(2), "step": _STEP}

    def digest(self, stage: str) -> str:
        """sha256 of the stage's inputs."""
        digest = hashlib.sha256()
        for array in self.inputs(stage).values():
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def picture(self, row: int = 0) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) from the decoder's values before rounding."""
        return np.rint(self.outputs["decoder"][row]).astype(np.uint8).transpose(1, 2, 0)

    def _noise(self, draw: int) -> NDArray[np.float32]:
        shape = (1, 4, HEIGHT // LATENT_SCALE, WIDTH // LATENT_SCALE)
        rows: list[NDArray[np.float32]] = []
        for i in range(self.batch_size):
            generator = TorchGenerator(GOLDEN.seed + i)
            rows.append([generator.randn(shape) for _ in range(draw + 1)][-1])
        return np.concatenate(rows)
