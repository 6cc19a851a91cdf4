"""What ONNX Runtime's own operators compute, by its docs/ContribOperators.md, in operators of ONNX.

On a CPU most of them have no kernel for float16. With these functions a graph that has them runs anywhere. Sums are in float32,
and each result is rounded once.
"""

import numpy as np
import onnx
from onnxscript import opset21 as op
from onnxscript import script
from onnxscript.values import Opset

DOMAIN, DEFINED = "com.microsoft", "definitions"
definitions = Opset(DEFINED, 1)


@script(definitions, default_opset=op)
def GroupNorm(x, gamma, beta, epsilon: float, groups: int, activation: int, channels_last: int):
    whole = op.Cast(op.Transpose(x, perm=[0, 3, 1, 2]), to=1)
    shape = op.Shape(whole)
    batch = op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    grouped = op.Reshape(
        whole,
        op.Concat(
            batch,
            op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1])),
            op.Constant(value_ints=[-1]),
            axis=0,
        ),
    )
    centred = grouped - op.ReduceMean(grouped, op.Constant(value_ints=[2]))
    variance = op.ReduceMean(centred * centred, op.Constant(value_ints=[2]))
    normed = op.Reshape(centred / op.Sqrt(variance + op.Constant(value_float=epsilon)), shape)
    scaled = op.Transpose(normed, perm=[0, 2, 3, 1]) * gamma + beta
    active = op.Cast(op.Constant(value_int=activation), to=1)
    return op.CastLike(scaled * (active * op.Sigmoid(scaled) + (op.Constant(value_float=1.0) - active)), x)


@script(definitions, default_opset=op)
def SkipGroupNorm(x, gamma, beta, skip, bias, epsilon: float, groups: int, activation: int, channels_last: int):
    shape = op.Shape(x)
    batch = op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    channels = op.Slice(shape, op.Constant(value_ints=[3]), op.Constant(value_ints=[4]))
    rows = op.Concat(batch, op.Constant(value_ints=[-1]), channels, axis=0)  # skip has one row or one per pixel
    total = op.Reshape(op.Reshape(x, rows) + op.Reshape(skip, rows), shape) + bias
    y = GroupNorm(
        total, gamma, beta, epsilon=epsilon, groups=groups, activation=activation, channels_last=channels_last
    )
    return y, total


@script(definitions, default_opset=op)
def MultiHeadAttention(query, key, value, num_heads: int, scale: float, unidirectional: int):
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    q = op.Transpose(op.Reshape(op.Cast(query, to=1), split), perm=[0, 2, 1, 3])
    k = op.Transpose(op.Reshape(op.Cast(key, to=1), split), perm=[0, 2, 3, 1])
    v = op.Transpose(op.Reshape(op.Cast(value, to=1), split), perm=[0, 2, 1, 3])
    scores = op.MatMul(q, k) * op.Constant(value_float=scale)
    ones = op.Expand(
        op.Constant(value_float=1.0),
        op.Slice(op.Shape(scores), op.Constant(value_ints=[2]), op.Constant(value_ints=[4])),
    )
    causal = op.Cast(op.Constant(value_int=unidirectional), to=1)
    hidden = op.Cast(op.Trilu(ones, op.Constant(value_int=1), upper=1) * causal, to=9)
    weights = op.Softmax(op.Where(hidden, op.Constant(value_float=float("-inf")), scores), axis=-1)
    joined = op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3])
    return op.CastLike(op.Reshape(joined, op.Constant(value_ints=[0, 0, -1])), query)


@script(definitions, default_opset=op)
def SkipLayerNormalization(x, skip, gamma, beta, bias, epsilon: float):
    total = op.Cast(x, to=1) + op.Cast(skip, to=1) + op.Cast(bias, to=1)
    centred = total - op.ReduceMean(total, op.Constant(value_ints=[-1]))
    variance = op.ReduceMean(centred * centred, op.Constant(value_ints=[-1]))
    scale = op.Sqrt(variance + op.Constant(value_float=epsilon))
    normed = centred / scale * op.Cast(gamma, to=1) + op.Cast(beta, to=1)
    return op.CastLike(normed, x), op.Identity(scale), op.Identity(scale), op.CastLike(total, x)


@script(definitions, default_opset=op)
def BiasGelu(x, bias):
    return op.CastLike(op.Gelu(op.Cast(x, to=1) + op.Cast(bias, to=1)), x)


@script(definitions, default_opset=op)
def BiasSplitGelu(x, bias):
    value, gate = op.Split(op.Cast(x, to=1) + op.Cast(bias, to=1), num_outputs=2, axis=-1)
    return op.CastLike(value * op.Gelu(gate), x)


FUNCTIONS = {
    function.name: function
    for function in (GroupNorm, SkipGroupNorm, MultiHeadAttention, SkipLayerNormalization, BiasGelu, BiasSplitGelu)
}


def with_definitions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a function in the place of every operator of `DOMAIN`. Changes it in place."""
    used = set()
    for node in model.graph.node:
        if node.domain == DOMAIN:
            node.domain = DEFINED
            used.add(node.op_type)
            if node.op_type == "SkipGroupNorm" and len(node.input) == 4:
                node.input.append("no_bias")  # a function has no optional inputs
            while len(node.output) < len(FUNCTIONS[node.op_type].function_ir.outputs):
                node.output.append(f"{node.output[0]}.unused{len(node.output)}")  # a function has no optional outputs
    used |= {GroupNorm.name} if SkipGroupNorm.name in used else set()  # which it calls
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float16), "no_bias"))
    model.functions.extend(FUNCTIONS[name].to_function_proto() for name in sorted(used))
    model.opset_import.append(onnx.helper.make_opsetid(DEFINED, 1))
    return model
