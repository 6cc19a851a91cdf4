"""The graphs of a stage as they lie in the store."""

from __future__ import annotations

from pathlib import Path

from sdturbo.bundle.description import ONNXRUNTIME_CUDA, PLAIN
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.graphs.onnxruntime_cuda import write_form
from sdturbo_export.options import BuildOptions
from sdturbo_export.stages import StageDefinition, example_inputs, graph_module


def write_graphs(definition: StageDefinition, options: BuildOptions, directory: Path) -> dict[str, dict[int, str]]:
    """Write one ONNX file per batch size and form to `directory`, and one file of weights for all of them.

    Returns form -> batch size -> name of the file. Every stage has plain graphs. In fp16 it has those for ONNX Runtime's CUDA
    provider too.
    """
    plain: dict[int, str] = {}
    precision, name = options.exported_precision, definition.name
    module = graph_module(definition, precision=precision, without=options.without)
    storage = {"pack": precision == "fp32", "rounded": options.weight_format == "fp16"}
    opset = 21 if precision == "fp16" else 20  # see `rewrites/half.py`
    with WeightFile(directory / f"{name}.weights") as weights:
        for size in options.batch_sizes:
            plain[size] = f"{name}.onnx" if size == 1 else f"{name}.b{size}.onnx"
            inputs, outputs = example_inputs(definition, size), [definition.output.name]
            onnx_from_torch(module, inputs, outputs, directory / plain[size], weights, opset=opset, **storage)
    if precision != "fp16":
        return {PLAIN: plain}
    fused = {size: f"{Path(file).stem}.{ONNXRUNTIME_CUDA}.onnx" for size, file in plain.items()}
    for size, file in fused.items():
        write_form(directory / plain[size], directory / file)
    return {PLAIN: plain, ONNXRUNTIME_CUDA: fused}
