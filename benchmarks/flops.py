"""Work counted from ONNX graphs with static shapes: multiplications and additions, and the bytes that must move.

A multiply-add is two operations. Counted are convolutions, matrix products and attention. Nodes between them are taken to be
fused into them. The module knows nothing about machines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner

Shapes = dict[str, tuple[int, ...]]

# operator -> positions of its two operands
PRODUCTS = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "ConvTranspose": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "Gemm": (0, 1),
}
# nodes that may stand between a product and the Softmax it belongs to
_ELEMENTWISE = {"Add", "Mul", "Div", "Sub", "Where", "IsNaN", "Cast", "Reshape", "Transpose", "Softmax"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One product. weights, activations: numbers of elements read or written, without an attention's scores, which stay on
    the chip."""

    name: str
    kind: str  # conv, matmul (one operand is a weight) or attention
    flops: int
    weights: int
    activations: int


def operations(path: Path) -> list[Operation]:
    """The products of the graph at `path`. Its weights are not read. Raises ValueError for a node that cannot be counted."""
    return count(onnx.load(str(path), load_external_data=False))


def count(model: onnx.ModelProto) -> list[Operation]:
    """The products of a model, in its order."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    shapes = _shapes(model)
    weights = _constants(graph)
    scores = _scores(graph.node)
    products: list[Operation] = []
    for node in graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise ValueError(f"{node.name or node.op_type} holds a graph of its own, which is not counted")
        if node.op_type == "Attention":
            products.append(_attention(node, shapes))
        elif node.op_type in PRODUCTS:
            products.append(_product(node, shapes, weights, scores))
    return products


def flops(products: Iterable[Operation], kind: str | None = None) -> int:
    """The floating-point operations of one kind or of all."""
    return sum(product.flops for product in products if kind in (None, product.kind))


def _product(node: onnx.NodeProto, shapes: Shapes, weights: set[str], scores: set[str]) -> Operation:
    operands = [node.input[i] for i in PRODUCTS[node.op_type]]
    (output,) = node.output
    x, w, y = (_shape(name, shapes) for name in (*operands, output))
    if node.op_type == "ConvTranspose":
        number = 2 * math.prod(x) * math.prod(w[1:])  # w: (C_in, C_out/group, kh, kw)
    elif "Conv" in node.op_type:
        number = 2 * math.prod(y) * math.prod(w[1:])  # w: (C_out, C_in/group, kh, kw)
    else:
        inner = x[-2] if node.op_type == "Gemm" and _integer(node, "transA") else x[-1]
        number = 2 * math.prod(y) * inner
    known = [name in weights for name in operands]
    kind = "conv" if "Conv" in node.op_type else "matmul" if any(known) else "attention"
    moved = [name for name, is_weight in zip(operands, known, strict=True) if not is_weight and name not in scores]
    moved += [output] if output not in scores else []
    return Operation(
        node.name or output,
        kind,
        number,
        sum(math.prod(shapes[name]) for name, is_weight in zip(operands, known, strict=True) if is_weight),
        sum(math.prod(shapes[name]) for name in moved),
    )


def _attention(node: onnx.NodeProto, shapes: Shapes) -> Operation:
    """The operator of opset 23: q·kᵀ and its product with v, from (B, heads, L, d) or (B, L, heads·d)."""
    q, k, v = (_shape(node.input[i], shapes) for i in range(3))
    y = _shape(node.output[0], shapes)
    number = 2 * k[-2] * (math.prod(q) + math.prod(y))
    return Operation(node.name or node.output[0], "attention", number, 0, sum(map(math.prod, (q, k, v, y))))


def _shapes(model: onnx.ModelProto) -> Shapes:
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}

    def read(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.value_info, *graph.output):
            sizes = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
                shapes.setdefault(value.name, tuple(size.dim_value for size in sizes))

    read(model.graph)
    if any(name not in shapes for node in model.graph.node for name in node.output if name):
        read(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    return shapes


def _shape(name: str, shapes: Shapes) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"the shape of {name!r} is not known, so its work cannot be counted")
    return shapes[name]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Everything that does not depend on the graph's inputs."""
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
    return constant


def _scores(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The tensors between the two products of an attention: from q·kᵀ over the softmax to the product with v."""
    producer = {name: node for node in nodes for name in node.output}
    consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in producer.values():
        for name in node.input:
            consumers[name].append(node)
    scores: set[str] = set()
    for node in producer.values():
        if node.op_type == "Softmax":
            scores |= _reachable(
                node.input[0], lambda name: producer[name].input if _passes(producer.get(name)) else ()
            )
            scores |= _reachable(
                node.output[0],
                lambda name: [out for consumer in consumers[name] if _passes(consumer) for out in consumer.output],
            )
    return scores


def _reachable(start: str, step: Callable[[str], Iterable[str]]) -> set[str]:
    reached, todo = set[str](), [start]
    while todo:
        name = todo.pop()
        if name and name not in reached:
            reached.add(name)
            todo += step(name)
    return reached


def _passes(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type in _ELEMENTWISE


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
