"""OpenVINO's form of the upsampling in phases: one transposed convolution in place of convolution, interleave and crop.

The bundle's graphs write nearest 2× and a 3×3 convolution as a 2×2 convolution with 4·C outputs P. Its phases (a, b) are
interleaved and cropped by one at each end (`sdturbo_export/rewrites/upsample.py`). Output row r = 2p + 1 - 2i + a takes row
p under tap i of phase a. A transposed convolution of stride 2 and padding 1 has r = 2p + k - 1. Both make the same sums, with

    W[c, o, k, l] = P[o, a, b, c, i, j]        k = 2·(1 - i) + a,  l = 2·(1 - j) + b

OpenVINO is faster at this form, ONNX Runtime at the other (`sdturbo_export/rewrites/README.md`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from openvino import Model, Node, Output


def transposed_upsampling(model: Model) -> int:
    """Change every such triple of `model`, an openvino.Model, in place. Returns their number."""
    changed = 0
    for crop in model.get_ordered_ops():
        if (operands := _phases(crop)) is not None:
            crop.output(0).replace(_transposed(*operands, name=crop.get_friendly_name()))
            changed += 1
    return changed


def _phases(crop: Node) -> tuple[Output, Output, Output | None] | None:
    """(image, weight, bias or None) of the phases that end in `crop`, two slices or a merged one. None if it ends none."""
    sides: set[int] = set()
    node = crop
    while node.get_type_name() == "Slice" and _is_crop(node) and (node is crop or _has_one_reader(node)):
        sides |= {int(axis) for axis in _constant(node, 4)}
        node = node.input_value(0).get_node()
    if sides != {2, 3} or node.get_type_name() != "DepthToSpace" or not _has_one_reader(node):
        return None
    if node.get_attributes() != {"block_size": 2, "mode": "depth_first"}:
        return None
    node, bias = node.input_value(0).get_node(), None
    if node.get_type_name() == "Add" and _has_one_reader(node):
        bias = node.input_value(1)
        if bias.get_node().get_type_name() == "Reshape":  # to (1, 4·C, 1, 1), by the shape of the convolution
            bias = bias.get_node().input_value(0)
        stored = _stored(bias)
        if stored is None or any(len(set(phases)) > 1 for phases in stored.reshape(-1, 4).tolist()):
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Convolution" or not _has_one_reader(node) or not _is_padded_by_one(node):
        return None
    weight = node.input_value(1)
    if _stored(weight) is None or list(weight.get_shape())[2:] != [2, 2]:
        return None
    return node.input_value(0), weight, bias


def _is_crop(node: Node) -> bool:
    starts, ends, strides, _ = (_constant(node, i) for i in (1, 2, 3, 4))
    last = {int(axis): node.input_value(0).get_shape()[axis] - 1 for axis in _constant(node, 4)}
    cut = all(end in (-1, last[axis]) for end, axis in zip(ends, _constant(node, 4), strict=True))
    return set(starts) == {1} and set(strides) == {1} and cut


def _constant(node: Node, i: int) -> list[int]:
    """The numbers of input i if it is a constant, else none."""
    numbers = _stored(node.input_value(i)) if i < node.get_input_size() else None
    return [] if numbers is None else [int(number) for number in numbers.flatten()]


def _stored(value: Output) -> NDArray[Any] | None:
    """The array of a constant, which may be stored in float16 and converted. None for anything else."""
    from openvino import op

    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_data() if isinstance(node, op.Constant) else None


def _has_one_reader(node: Node) -> bool:
    """Of its values. Any node may read their shape, which is known."""
    readers = [port.get_node().get_type_name() for port in node.output(0).get_target_inputs()]
    return len(readers) - readers.count("ShapeOf") == 1


def _is_padded_by_one(node: Node) -> bool:
    attributes = node.get_attributes()
    return (
        attributes["strides"] == attributes["dilations"] == [1, 1]
        and attributes["pads_begin"] == attributes["pads_end"] == [1, 1]
        and attributes["auto_pad"] == "explicit"
    )


def _transposed(image: Output, weight: Output, bias: Output | None, *, name: str) -> Output:
    """The transposed convolution. Its weights are a view of the stored ones, folded when the model is compiled."""
    import numpy as np
    from openvino import opset13 as ops

    outputs, inputs = weight.get_shape()[0] // 4, weight.get_shape()[1]
    phases = ops.reshape(weight, [outputs, 2, 2, inputs, 2, 2], special_zero=False)  # o a b c i j
    for axis in (4, 5):  # 1 - i, 1 - j
        phases = ops.gather(phases, np.array([1, 0]), np.int64(axis))
    taps = ops.transpose(phases, np.array([3, 0, 4, 1, 5, 2]))  # c o 1-i a 1-j b
    kernel = ops.reshape(taps, [inputs, outputs, 4, 4], special_zero=False)
    result = ops.convolution_backprop_data(image, kernel, [2, 2], pads_begin=[1, 1], pads_end=[1, 1])
    if bias is not None:
        by_phase = ops.reshape(bias, [1, outputs, 4, 1], special_zero=False)
        result = ops.add(result, ops.gather(by_phase, np.array([0]), np.int64(2)))
    result.set_friendly_name(name)
    return result.output(0)
