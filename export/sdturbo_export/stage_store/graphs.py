"""The graphs of a stage as they lie in the store."""

from __future__ import annotations

from pathlib import Path

from sdturbo_export.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.options import BuildOptions
from sdturbo_export.stages import StageDefinition, example_inputs, graph_module


def write_graphs(definition: StageDefinition, options: BuildOptions, directory: Path) -> dict[int, str]:
    """Write one ONNX file per batch size to `directory`, and one file of weights for all of them.

    Returns batch size -> name of the file.
    """
    graphs: dict[int, str] = {}
    precision, name = options.exported_precision, definition.name
    module = graph_module(definition, precision=precision, without=options.without)
    storage = {"pack": precision == "fp32", "rounded": options.weight_format == "fp16"}
    opset = 21 if precision == "fp16" else 20  # see `rewrites/half.py`
    with WeightFile(directory / f"{name}.weights") as weights:
        for size in options.batch_sizes:
            graphs[size] = f"{name}.onnx" if size == 1 else f"{name}.b{size}.onnx"
            inputs, outputs = example_inputs(definition, size), [definition.output.name]
            onnx_from_torch(module, inputs, outputs, directory / graphs[size], weights, opset=opset, **storage)
    return graphs
