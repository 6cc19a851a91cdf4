"""Weights of two bytes for OpenVINO. It then needs less memory and loads in less time.

OpenVINO folds a constant and its Convert to float32 while it compiles, which takes the weights' float32 size of memory. A
Convert with the mark of its own files is not folded: each layer then converts its weights. The mark is ov::Decompression, and
only its name counts (openvino/core/rt_info/decompression.hpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openvino import Input, Model, Node, Output, Tensor

_MARK = "decompression_0"
_LAYERS = {"MatMul", "Convolution", "Gather"}  # others want their constants folded


def keep_half_weights(model: Model) -> int:
    """Mark every float16 weight of a layer in `model`, an openvino.Model, in place. Returns their number."""
    casts = [node for node in model.get_ops() if node.get_type_name() == "Convert" and _type(node.input(0)) == "f16"]
    weights = [
        cast for cast in casts if cast.input_value(0).get_node().get_type_name() == "Constant" and _is_weight(cast)
    ]
    for cast in weights:
        cast.get_rt_info()[_MARK] = ""
    return len(weights)


def round_weights(model: Model) -> int:
    """Store every float32 weight of a layer in `model` in bfloat16, in place. Returns their number.

    Layers that compute in bfloat16 round their weights in the same way, to nearest even.
    """
    from openvino import op
    from openvino import opset13 as ops

    constants = [node for node in model.get_ops() if isinstance(node, op.Constant) and _type(node.output(0)) == "f32"]
    weights = [constant for constant in constants if _is_weight(constant)]
    for constant in weights:
        cast = ops.convert(op.Constant(_rounded(constant.data)), "f32")
        cast.get_rt_info()[_MARK] = ""
        for reader in constant.output(0).get_target_inputs():
            reader.replace_source_output(cast.output(0))
    return len(weights)


def _rounded(values: NDArray[Any]) -> Tensor:
    """float32 to bfloat16, to nearest even: 0x7FFF is added, and the last bit that stays."""
    from openvino import Tensor, Type

    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = Tensor(Type.bf16, list(values.shape))
    np.right_shift(bits + 0x7FFF + (bits >> 16 & 1), 16, out=rounded.data.view(np.uint16), casting="unsafe")
    return rounded


def _type(port: Input | Output) -> str:
    return port.get_element_type().get_type_name()


def _is_weight(node: Node) -> bool:
    """Whether layers, and nothing else, read its value."""
    return {port.get_node().get_type_name() for port in node.output(0).get_target_inputs()} <= _LAYERS
