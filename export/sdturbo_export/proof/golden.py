"""The golden request: its tensors are the parity inputs of every stage of a build, and its picture is stored in the bundle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import Golden, Size
from sdturbo_export.proof.walk import Walk
from sdturbo_export.stages import DEFAULT_SIZE, stage_definitions, stage_of
from sdturbo_export.weights.checkpoint import Checkpoint

GOLDEN = Golden(prompt="a photo of a cat", seed=0, num_inference_steps=1, image="golden.png", min_psnr=30.0)


def golden_walk(
    checkpoint: Checkpoint, input_ids: NDArray[np.int64], batch_size: int, size: Size = DEFAULT_SIZE
) -> Walk:
    """The golden request on its way through a checkpoint's stages. Image i of the batch takes seed + i.

    input_ids: of the golden prompt, int64 (1, 77).
    """
    stages = {name: stage_of(definition, size) for name, definition in stage_definitions(checkpoint).items()}
    seeds = [GOLDEN.seed + i for i in range(batch_size)]
    rows = checkpoint.schedule.rows
    return Walk(stages, rows, GOLDEN.num_inference_steps, np.repeat(input_ids, batch_size, axis=0), seeds)
