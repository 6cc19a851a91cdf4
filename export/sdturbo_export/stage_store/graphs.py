"""The graphs of a stage as they lie in the store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sdturbo_export.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.stages import StagePlan, example_inputs, graph_module
from sdturbo_export.weights.checkpoint import Checkpoint


def write_graphs(
    plan: StagePlan,
    checkpoint: Checkpoint,
    batch_sizes: Sequence[int],
    precision: str,
    weight_format: str,
    without: Collection[str],
    directory: Path,
) -> dict[int, str]:
    """Write one ONNX file per batch size to `directory`, and one file of weights for all of them.

    Returns batch size -> name of the file. The other arguments are those of `build`.
    """
    graphs: dict[int, str] = {}
    module = graph_module(plan, checkpoint, precision=precision, without=without)
    with WeightFile(directory / f"{plan.name}.weights") as weights:
        for size in batch_sizes:
            graphs[size] = f"{plan.name}.onnx" if size == 1 else f"{plan.name}.b{size}.onnx"
            inputs = example_inputs(plan, checkpoint, size)
            outputs = [plan.output(checkpoint).name]
            storage = {"pack": precision == "fp32", "rounded": weight_format == "fp16"}
            onnx_from_torch(module, inputs, outputs, directory / graphs[size], weights, **storage)
    return graphs
