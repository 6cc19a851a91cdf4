"""The golden request: its tensors are the parity inputs of every stage of a build, and its picture is stored in the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import Golden
from sdturbo_export.proof.walk import Arrays, Walk
from sdturbo_export.stages import PLANS, stage_of
from sdturbo_export.weights.checkpoint import Checkpoint

GOLDEN = Golden(prompt="a photo of a cat", seed=0, num_inference_steps=1, image="golden.png", min_psnr=30.0)


def golden_walk(checkpoint: Checkpoint, input_ids: NDArray[np.int64], batch_size: int) -> Walk:
    """The golden request on its way through a checkpoint's stages. Row i of the batch takes seed + i.

    input_ids: of the golden prompt, int64 (1, 77).
    """
    stages = {plan.name: stage_of(plan, checkpoint) for plan in PLANS}
    seeds = [GOLDEN.seed + i for i in range(batch_size)]
    rows = checkpoint.schedule.rows
    return Walk(stages, rows, GOLDEN.num_inference_steps, np.repeat(input_ids, batch_size, axis=0), seeds)


def golden_inputs(golden: Walk, stage: str) -> Arrays:
    """The stage's inputs, from the outputs of the stages before it."""
    return golden.inputs(stage, golden.rows[0])


def digest(inputs: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of a stage's inputs."""
    summed = hashlib.sha256()
    for array in inputs.values():
        summed.update(np.ascontiguousarray(array).data)
    return summed.hexdigest()
