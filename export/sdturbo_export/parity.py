"""How far a graph is from PyTorch: each stage against diffusers' own modules, in float32, on the same inputs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sdturbo.backends import Backend
from sdturbo.bundle import Stage, TensorSpec
from sdturbo_export.checkpoint import Checkpoint
from sdturbo_export.stages import HEIGHT, WIDTH, Decoder, StagePlan, example_inputs

BOUNDS = {"fp32": 1e-4, "bf16": 3e-2}  # relative L2 a stage


def stage_of(plan: StagePlan, checkpoint: Checkpoint, graphs: Mapping[int, str]) -> Stage:
    """The stage's entry of the bundle."""
    return Stage(plan.name, plan.inputs(checkpoint), (plan.output(checkpoint),), graphs)


def stage_parity(
    plan: StagePlan, checkpoint: Checkpoint, graphs: Mapping[int, Path], backend: Backend, workspace: Path
) -> float:
    """The largest relative L2 distance ‖ours - torch‖/‖torch‖ over the stage's batch sizes, on `backend`.

    The decoder is compared before it rounds to whole pixel values. workspace: an existing directory for temporary files.
    """
    reference = plan.reference(checkpoint.module(plan.component), checkpoint).eval()
    expect = reference.pixels if isinstance(reference, Decoder) else reference
    stage = stage_of(plan, checkpoint, {})
    worst = 0.0
    for batch_size, path in graphs.items():
        inputs = example_inputs(plan, checkpoint, batch_size, seed=1)
        with torch.no_grad():
            expected = expect(*inputs.values()).numpy()
        graph = path
        if isinstance(reference, Decoder):
            graph = _before_rounding(path, workspace)
            stage = dataclasses.replace(stage, outputs=(TensorSpec("pixels", "float32", ("B", 3, HEIGHT, WIDTH)),))
        session = backend.session(graph, stage, batch_size)
        (found,) = session.run({name: tensor.numpy() for name, tensor in inputs.items()}).values()
        worst = max(worst, relative_l2(found, expected))
    return worst


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖found - expected‖ / ‖expected‖ in float64; infinite if anything is not finite."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    value = float(difference / np.linalg.norm(expected.astype(np.float64).ravel()))
    return value if np.isfinite(value) else float("inf")


def psnr(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; infinite if they are equal."""
    error = np.mean((found.astype(np.float64) - expected) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _before_rounding(path: Path, workspace: Path) -> Path:
    """A copy of the decoder's graph that gives the float32 values its Round node takes, named `pixels`."""
    model = onnx.load(str(path), load_external_data=False)
    (rounding,) = (node for node in model.graph.node if node.op_type == "Round")
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, None)
    model.graph.node.append(onnx.helper.make_node("Identity", [rounding.input[0]], ["pixels"]))
    del model.graph.output[:]
    model.graph.output.append(pixels)
    folder = workspace / "before_rounding"
    folder.mkdir(exist_ok=True)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).exists():
                shutil.copyfile(path.parent / entry.value, folder / entry.value)
    target = folder / path.name
    onnx.save(model, str(target))
    return target
