"""The nodes of a graph that can be computed in 8 bits: convolutions and matrix products with constant weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_CHANNEL_AXIS = {"Conv": 0, "MatMul": 1}  # of the weight: its output channels


@dataclass(frozen=True, slots=True)
class Layer:
    """A node by its name, the activation it reads, and its weight with the axis of the output channels."""

    name: str
    activation: str
    weight: str
    axis: int


def layers_of(model: ir.Model) -> tuple[Layer, ...]:
    """Every such node of the graph, in order."""
    layers: list[Layer] = []
    for node in model.graph:
        axis = _CHANNEL_AXIS.get(node.op_type)
        if axis is None:
            continue
        activation, weight = node.inputs[:2]
        if activation is None or weight is None or not node.name or not activation.name or not weight.name:
            continue
        stored = constant(weight)
        if constant(activation) is None and stored is not None and len(stored.shape) >= 2:
            layers.append(Layer(node.name, activation.name, weight.name, axis))
    return tuple(layers)


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The stored tensor of an initializer, or of one that a Cast gives back in float32. None for a computed value."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        value = producer.inputs[0]
    return value.const_value if value.is_initializer() else None


def activations(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Names of the tensors that the layers read, each once, in order."""
    return tuple(dict.fromkeys(layer.activation for layer in layers))


def float_weight(value: ir.Value) -> NDArray[np.float32]:
    """The numbers of a weight that `constant` finds."""
    tensor = constant(value)
    if tensor is None:
        raise ValueError(f"{value.name} is no constant")
    return tensor.numpy().astype(np.float32)
