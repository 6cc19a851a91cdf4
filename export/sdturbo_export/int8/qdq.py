"""QuantizeLinear and DequantizeLinear (QDQ) around layers: the form that ONNX Runtime and OpenVINO compute in 8 bits.

    activation, a tensor:          q = clamp(round(x/s) + z, 0, 255)      s = (hi - lo)/255      z = round(-lo/s)
    weight, an output channel c:   q = round(w/s_c)                       s_c = max|w_c|/63

A weight gets 7 bits. The AVX2 product of unsigned and signed bytes adds pairs in 16 bits, where 2·255·63 fits and
2·255·127 does not. Bias and the sum stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import optimizer

from sdturbo_export.graphs.onnx_from_torch import INLINE_BYTES, WeightFile
from sdturbo_export.int8.layers import Layer, float_weight

WEIGHT_MAX = 63

Range = tuple[float, float]


def insert_qdq(model: ir.Model, layers: Sequence[Layer], ranges: Mapping[str, Range]) -> None:
    """Change the graph in place: `layers` read their activation and weight through 8 bits.

    ranges: activation -> (lo, hi) with lo <= 0 <= hi and lo < hi.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph}
    rounded: dict[str, ir.Value] = {}  # activation -> its form in 8 bits, which several layers may read
    for layer in layers:
        node = nodes[layer.name]
        activation, weight = node.inputs[:2]
        assert activation is not None
        assert weight is not None
        if layer.activation not in rounded:
            scale, zero = activation_grid(*ranges[layer.activation])
            rounded[layer.activation] = _through_8_bits(graph, node, activation, scale, zero)
        node.replace_input_with(0, rounded[layer.activation])
        node.replace_input_with(1, _dequantized_weight(graph, node, weight, layer.axis))
    optimizer.remove_unused_nodes(model)  # casts and float weights without a reader


def activation_grid(lo: float, hi: float) -> tuple[np.float32, np.uint8]:
    """(scale, zero point) of an activation. The value 0 is a whole step."""
    scale = np.float32((hi - lo) / 255)
    return scale, np.uint8(np.clip(np.rint(-lo / scale), 0, 255))


def quantize_weight(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(whole numbers from -63 to 63, scale of each channel along `axis`). A channel of zeros has scale 1."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    most = np.abs(weight).max(others, keepdims=True)
    scale = np.where(most > 0, most / WEIGHT_MAX, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale.reshape(-1)


def write_graph(model: ir.Model, path: Path, weights: WeightFile) -> None:
    """Write the graph to `path`, its large tensors to `weights` in the same directory. The same model gives the same bytes."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and (tensor.nbytes >= INLINE_BYTES or isinstance(tensor, ir.ExternalTensor)):
            value.const_value = weights.put(tensor)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _through_8_bits(graph: ir.Graph, before: ir.Node, value: ir.Value, scale: np.float32, zero: np.uint8) -> ir.Value:
    grid = [initializer(graph, f"{value.name}.scale", scale), initializer(graph, f"{value.name}.zero", zero)]
    quantize = ir.node("QuantizeLinear", [value, *grid])
    quantize.outputs[0].name = f"{value.name}.u8"
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *grid])
    return _insert(graph, before, [quantize, dequantize], value, f"{value.name}.8bit")


def _dequantized_weight(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    whole, scale = quantize_weight(float_weight(value), axis)
    inputs = [
        initializer(graph, f"{value.name}.s8", whole),
        initializer(graph, f"{value.name}.scale", scale),
        initializer(graph, f"{value.name}.zero", np.zeros(len(scale), np.int8)),
    ]
    return _insert(graph, before, [ir.node("DequantizeLinear", inputs, {"axis": axis})], value, f"{value.name}.8bit")


def _insert(graph: ir.Graph, before: ir.Node, nodes: Sequence[ir.Node], like: ir.Value, name: str) -> ir.Value:
    graph.insert_before(before, nodes)
    result = nodes[-1].outputs[0]
    result.name, result.shape, result.type = name, like.shape, like.type
    return result


def initializer(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    """The graph's initializer of that name. `array` becomes it if there is none."""
    if name in graph.initializers:  # a weight that two layers share
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(np.shape(array)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
