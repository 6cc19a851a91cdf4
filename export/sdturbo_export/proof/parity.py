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
from torch import nn

from sdturbo.backends import Backend, BackendChoice, connect
from sdturbo.bundle.description import GraphName, Size, TensorSpec
from sdturbo.bundle.external_data import external_locations
from sdturbo_export.proof.distance import relative_l2
from sdturbo_export.proof.half_arithmetic import HalfArithmetic
from sdturbo_export.proof.walk import Arrays, Walk, run_of
from sdturbo_export.stage_store import StoredStage, digest
from sdturbo_export.stages import DEFAULT_SIZE, StageDefinition, example_inputs, graph_module, stage_of


def torch_output(definition: StageDefinition, inputs: Arrays) -> NDArray[Any]:
    """The output of diffusers' modules. The decoder gives its float32 values before rounding."""
    checkpoint = definition.checkpoint
    reference = definition.reference(checkpoint.module(definition.component), checkpoint)
    return _run(reference.eval(), definition, inputs)


def half_output(definition: StageDefinition, inputs: Arrays, without: Collection[str] = ()) -> NDArray[Any]:
    """The output of the stage's float16 module in a GPU's arithmetic, overflow included, as `torch_output` gives it.

    The exported graph is the same module. But ONNX Runtime's CPU provider does not round between its nodes.
    """
    module = graph_module(definition, precision="fp16", without=without)
    with HalfArithmetic():
        return _run(module, definition, inputs)


def engine_output(
    definition: StageDefinition,
    graph: Path,
    inputs: Arrays,
    backend: Backend,
    scratch_folder: Path | None = None,
    size: Size = DEFAULT_SIZE,
) -> NDArray[Any]:
    """The output of `graph` on `backend`. The decoder gives its float32 values before rounding.

    TensorRT's plans do not give those. Rounded pixels take their place, which are off by at most 0.3 % of a picture's L2.
    scratch_folder: where temporary files lie, by default the system's folder for them. size: of the graph's pictures.
    """
    stage, batch_size = stage_of(definition, size), len(next(iter(inputs.values())))
    unrounded = definition.name == "decoder" and backend.name != "tensorrt"
    with tempfile.TemporaryDirectory(dir=scratch_folder, prefix=".parity-") as folder:
        if unrounded:
            graph = _before_rounding(graph, Path(folder))
            stage = dataclasses.replace(stage, outputs=(TensorSpec("pixels", "float32", ("B", 3, *size)),))
        (output,) = backend.session(graph, stage, batch_size).run(inputs).values()
    return output.transpose(0, 3, 1, 2).astype(np.float32) if output.dtype == np.uint8 else output


def golden_output(definition: StageDefinition, stored: StoredStage, precision: str, golden_walk: Walk) -> NDArray[Any]:
    """The stage's output for the golden request: the stored one if its inputs are the same, or a computed one."""
    inputs = golden_walk.inputs(definition.name)
    if stored.inputs_sha256 == digest(inputs):
        return stored.output()
    backend = connect(BackendChoice("onnxruntime", precision=precision))
    graph = stored.graph(len(golden_walk.seeds), golden_walk.size)
    return engine_output(definition, graph, inputs, backend, stored.entry.parent, golden_walk.size)


def golden_picture(golden_walk: Walk, stages: Mapping[str, StoredStage], precision: str) -> NDArray[np.uint8]:
    """The golden picture at the walk's size, drawn by the stored graphs in ONNX Runtime."""
    backend = connect(BackendChoice("onnxruntime", precision=precision))
    batch_size = len(golden_walk.seeds)
    sessions = {
        name: backend.session(stages[name].graph(batch_size, golden_walk.size), stage, batch_size)
        for name, stage in golden_walk.stages.items()
        if name != "encoder"
    }
    for _ in golden_walk.visits(run_of(sessions), until="decoder"):
        pass
    return golden_walk.picture()


def stage_parity(
    definition: StageDefinition, graphs: Mapping[GraphName, Path], backend: Backend, scratch_folder: Path | None = None
) -> float:
    """The largest relative L2 distance ‖ours - torch‖/‖torch‖ over the stage's batch and picture sizes, on `backend`."""
    worst = 0.0
    for graph, file in graphs.items():
        size = (graph.height, graph.width) if graph.height else DEFAULT_SIZE
        examples = example_inputs(definition, graph.batch_size, size, seed=1)
        inputs = {name: tensor.numpy() for name, tensor in examples.items()}
        output = engine_output(definition, file, inputs, backend, scratch_folder, size)
        worst = max(worst, relative_l2(output, torch_output(definition, inputs)))
    return worst


def _run(module: nn.Module, definition: StageDefinition, inputs: Arrays) -> NDArray[Any]:
    run: Any = module.pixels if definition.name == "decoder" else module
    with torch.no_grad():
        return run(*(torch.from_numpy(inputs[spec.name]) for spec in definition.inputs)).numpy()


def _before_rounding(path: Path, folder: Path) -> Path:
    """A copy of the decoder's graph that gives the float32 inputs of its Round node, named `pixels`."""
    model = onnx.load(str(path), load_external_data=False)
    (rounding,) = (node for node in model.graph.node if node.op_type == "Round")
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, None)
    model.graph.node.append(onnx.helper.make_node("Identity", [rounding.input[0]], ["pixels"]))
    del model.graph.output[:]
    model.graph.output.append(pixels)
    for name in external_locations(path):
        shutil.copyfile(path.parent / name, folder / name)
    onnx.save(model, str(folder / path.name))
    return folder / path.name
