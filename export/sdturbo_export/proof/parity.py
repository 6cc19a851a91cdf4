"""How far a graph is from PyTorch: each stage against diffusers' own modules, in float32, on the same inputs."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sdturbo.backends import Backend, EngineChoice, connect
from sdturbo.bundle.description import TensorSpec
from sdturbo_export.proof.distance import relative_l2
from sdturbo_export.proof.golden import digest, golden_inputs
from sdturbo_export.proof.half_arithmetic import HalfArithmetic
from sdturbo_export.proof.walk import Walk
from sdturbo_export.rewrites.half import Half
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stages import HEIGHT, WIDTH, Decoder, StagePlan, example_inputs, graph_module, stage_of
from sdturbo_export.weights.checkpoint import Checkpoint

Arrays = Mapping[str, NDArray[Any]]


def torch_output(plan: StagePlan, checkpoint: Checkpoint, inputs: Arrays) -> NDArray[Any]:
    """What diffusers' modules make of `inputs`; for the decoder the float32 values before it rounds."""
    reference = plan.reference(checkpoint.module(plan.component), checkpoint).eval()
    run = reference.pixels if isinstance(reference, Decoder) else reference
    with torch.no_grad():
        return run(*(torch.from_numpy(inputs[spec.name]) for spec in plan.inputs(checkpoint))).numpy()


def half_output(plan: StagePlan, checkpoint: Checkpoint, inputs: Arrays, without: Collection[str] = ()) -> NDArray[Any]:
    """What the stage's float16 module makes of `inputs` in a GPU's arithmetic, overflow included.

    The exported graph is the same module, but ONNX Runtime's CPU provider does not round between its nodes.
    """
    module = graph_module(plan, checkpoint, precision="fp16", without=without)
    assert isinstance(module, Half)  # as every stage in fp16
    run = module.pixels if plan.name == "decoder" else module
    with torch.no_grad(), HalfArithmetic():
        return run(*(torch.from_numpy(inputs[spec.name]) for spec in plan.inputs(checkpoint))).numpy()


def engine_output(
    plan: StagePlan, checkpoint: Checkpoint, graph: Path, inputs: Arrays, backend: Backend, workspace: Path
) -> NDArray[Any]:
    """What `graph` makes of `inputs` on `backend`; for the decoder the float32 values before it rounds.

    A backend that runs plans cannot be asked for those: its rounded pixels are off by 0.3 % of a picture's L2 at most.
    workspace: an existing directory for temporary files.
    """
    stage = stage_of(plan, checkpoint)
    if plan.name == "decoder" and backend.name == "tensorrt":
        (image,) = backend.session(graph, stage, len(next(iter(inputs.values())))).run(inputs).values()
        return image.transpose(0, 3, 1, 2).astype(np.float32)
    if plan.name == "decoder":
        graph = _before_rounding(graph, workspace)
        stage = dataclasses.replace(stage, outputs=(TensorSpec("pixels", "float32", ("B", 3, HEIGHT, WIDTH)),))
    session = backend.session(graph, stage, len(next(iter(inputs.values()))))
    (found,) = session.run(inputs).values()
    return found


def golden_output(
    plan: StagePlan, checkpoint: Checkpoint, stored: StoredStage, precision: str, golden: Walk
) -> NDArray[Any]:
    """The stage's output for the golden request: stored if its inputs are the same, else computed."""
    inputs = golden_inputs(golden, plan.name)
    if stored.inputs_sha256 == digest(inputs):
        return stored.output()
    graph = stored.path / stored.graphs[len(golden.seeds)]
    with tempfile.TemporaryDirectory(dir=stored.note.parent, prefix=".parity-") as workspace:
        backend = connect(EngineChoice("onnxruntime", precision=precision))
        return engine_output(plan, checkpoint, graph, inputs, backend, Path(workspace))


def stage_parity(
    plan: StagePlan, checkpoint: Checkpoint, graphs: Mapping[int, Path], backend: Backend, workspace: Path
) -> float:
    """The largest relative L2 distance ‖ours - torch‖/‖torch‖ over the stage's batch sizes, on `backend`."""
    worst = 0.0
    for batch_size, graph in graphs.items():
        inputs = {name: tensor.numpy() for name, tensor in example_inputs(plan, checkpoint, batch_size, seed=1).items()}
        expected = torch_output(plan, checkpoint, inputs)
        worst = max(worst, relative_l2(engine_output(plan, checkpoint, graph, inputs, backend, workspace), expected))
    return worst


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
