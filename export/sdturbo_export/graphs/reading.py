"""What a rule reads off a graph: shapes, constants and attributes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def node_of(value: ir.Value) -> ir.Node:
    """The node that computes it. For values that a rule has matched, so there is one."""
    node = value.producer()
    assert node is not None
    return node


def shape_of(value: ir.Value) -> tuple[Any, ...]:
    """Its sizes. Empty for a number, and where they are not known."""
    return () if value.shape is None else tuple(value.shape.numpy())


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """Its tensor, None if it depends on an input."""
    return ir.convenience.get_const_tensor(value)


def numbers_of(value: ir.Value) -> NDArray[Any]:
    """Those of a constant."""
    tensor = constant_of(value)
    assert tensor is not None
    return tensor.numpy()


def epsilon_of(normed: ir.Value) -> float:
    """What is added to the variance by the norm that gives `normed`."""
    return node_of(normed).attributes.get_float("epsilon", 1e-5)
