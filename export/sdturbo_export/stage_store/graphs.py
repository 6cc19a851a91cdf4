"""The graphs of a stage as they lie in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdturbo.bundle.description import ONNXRUNTIME_CUDA, GraphName
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.graphs.onnxruntime_cuda import write_form
from sdturbo_export.options import BuildOptions
from sdturbo_export.stages import DEFAULT_SIZE, StageDefinition, example_inputs, graph_module


def write_graphs(definition: StageDefinition, options: BuildOptions, directory: Path) -> dict[GraphName, str]:
    """Write one ONNX file per batch size, picture size and form to `directory`, and one file of weights for all of them.

    Returns the files' names. Every stage has plain graphs. In fp16 it has those for ONNX Runtime's CUDA provider too.
    """
    graphs: dict[GraphName, str] = {}
    precision, name = options.exported_precision, definition.name
    module = graph_module(definition, precision=precision, without=options.without)
    storage = {"pack": precision == "fp32", "rounded": options.weight_format == "fp16"}
    opset = 21 if precision == "fp16" else 20  # see `rewrites/half.py`
    with WeightFile(directory / f"{name}.weights") as weights:
        for graph in definition.graph_names(options.batch_sizes, options.sizes):
            graphs[graph] = _file(name, graph)
            size = (graph.height, graph.width)
            inputs = example_inputs(definition, graph.batch_size, size if all(size) else DEFAULT_SIZE)
            outputs = [definition.output.name]
            onnx_from_torch(module, inputs, outputs, directory / graphs[graph], weights, opset=opset, **storage)
    if precision == "fp16":
        for graph, file in list(graphs.items()):
            fused = graphs[replace(graph, form=ONNXRUNTIME_CUDA)] = f"{Path(file).stem}.{ONNXRUNTIME_CUDA}.onnx"
            write_form(directory / file, directory / fused)
    return graphs


def _file(stage: str, graph: GraphName) -> str:
    """`decoder.onnx`, `decoder.b4.onnx`, `decoder.768x512.onnx` (width x height): what is usual is not named."""
    batch = "" if graph.batch_size == 1 else f".b{graph.batch_size}"
    usual = (graph.height, graph.width) in ((0, 0), DEFAULT_SIZE)
    return f"{stage}{batch}{'' if usual else f'.{graph.width}x{graph.height}'}.onnx"
