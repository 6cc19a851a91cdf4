"""The biases of convolutions added by the norms after them, in graphs of the form for ONNX Runtime's CUDA provider.

The provider adds a bias in a pass of its own over the picture, a fifth of the decoder's time on an H200. SkipGroupNorm adds it
in the pass that sums its groups.

    GroupNorm(conv(x) + b)           becomes    SkipGroupNorm(conv(x), skip=b)
    SkipGroupNorm(conv(x) + b, s)    becomes    SkipGroupNorm(conv(x), s, bias=b)
"""

from __future__ import annotations

from typing import cast

import onnx_ir as ir

from sdturbo_export.graphs.reading import CHANNELS_FIRST

CONVOLUTIONS = ("Conv", "ConvTranspose")
X, SKIP = 0, 3  # inputs of SkipGroupNorm


def norms_add_biases(graph: ir.Graph) -> None:
    """Change every norm that directly follows a convolution with a bias, in place."""
    for norm in list(graph):
        if norm.op_type == "SkipGroupNorm" and len(norm.inputs) == SKIP + 1:
            for place in (X, SKIP):
                conv = _convolution(norm.inputs[place])
                if conv is not None and len(conv.outputs[0].uses()) == 1:  # the norm's transpose
                    _replace(graph, norm, [*norm.inputs, _take_bias(conv)], len(norm.outputs))
                    break
        elif norm.op_type == "GroupNorm" and (conv := _convolution(norm.inputs[X])) is not None:
            _add_bias_as_skip(graph, norm, conv)


def _convolution(picture: ir.Value | None) -> ir.Node | None:
    """The convolution with a bias whose output `picture` is, channels last."""
    transpose = None if picture is None else picture.producer()
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return None
    conv = transpose.inputs[0].producer()
    return conv if conv is not None and conv.op_type in CONVOLUTIONS and len(conv.inputs) == 3 else None


def _take_bias(conv: ir.Node) -> ir.Value:
    bias = cast("ir.Value", conv.inputs[2])
    conv.resize_inputs(2)
    return bias


def _add_bias_as_skip(graph: ir.Graph, norm: ir.Node, conv: ir.Node) -> None:
    """Others that read the convolution's output get the sum from the norm."""
    output = conv.outputs[0]
    others = [(node, at) for node, at in output.uses() if node.outputs[0] is not norm.inputs[X]]
    assert output.shape is not None
    batch_size, channels = output.shape.numpy()[:2]
    bias = _take_bias(conv)
    rows = _rows(graph, norm, bias, batch_size, channels)
    made = _replace(graph, norm, [*norm.inputs, rows], 2 if others else 1)
    if others:
        back = ir.node("Transpose", [made.outputs[1]], {"perm": CHANNELS_FIRST}, name=f"{made.name}.sum")
        back.outputs[0].name, back.outputs[0].shape, back.outputs[0].type = (
            f"{output.name}.with_bias",
            output.shape,
            output.type,
        )
        graph.insert_after(made, back)
        for node, at in others:
            node.replace_input_with(at, back.outputs[0])


def _rows(graph: ir.Graph, before: ir.Node, bias: ir.Value, batch_size: int, channels: int) -> ir.Value:
    """The bias as (B, C)."""
    shape = ir.node("Constant", [], {"value_ints": [batch_size, channels]}, name=f"{before.name}.rows")
    rows = ir.node("Expand", [bias, shape.outputs[0]], name=f"{before.name}.bias")
    shape.outputs[0].name, rows.outputs[0].name = f"{before.name}.rows", f"{before.name}.bias"
    graph.insert_before(before, [shape, rows])
    return rows.outputs[0]


def _replace(graph: ir.Graph, norm: ir.Node, inputs: list[ir.Value | None], outputs: int) -> ir.Node:
    """SkipGroupNorm of `inputs` in the place of `norm`."""
    made = ir.Node(
        norm.domain, "SkipGroupNorm", inputs, list(norm.attributes.values()), num_outputs=outputs, name=norm.name
    )
    graph.insert_before(norm, made)
    for old, new in zip(norm.outputs, made.outputs, strict=False):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new)
    if outputs > len(norm.outputs):
        made.outputs[-1].name = f"{norm.outputs[0].name}.sum"
    graph.remove(norm, safe=True)
    return made
