"""A torch module to an ONNX file with static shapes. Graphs of different batch size share one file of weights.

Float32 weights that float16 holds exactly, such as those of an fp16 checkpoint, may be stored in float16. A Cast in the graph
gives the same numbers back. Matrices and kernels may also be rounded to float16 on request. Engines fold the Cast when
they load, or keep it.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn

INLINE_BYTES = 1024  # smaller tensors stay in the graph file
ALIGNMENT = 4096  # a page, so that weights can be memory-mapped


class WeightFile(AbstractContextManager["WeightFile"]):
    """External data that several graphs refer to. Each distinct tensor is written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[tuple[str, bytes], tuple[int, int]] = {}
        self._file: BinaryIO = path.open("wb")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The tensor as a reference into this file."""
        data = np.ascontiguousarray(tensor.numpy())
        key = (str(tensor.dtype), hashlib.sha256(data.data).digest())
        if key not in self._written:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data.data)
            self._written[key] = (offset, data.nbytes)
        offset, length = self._written[key]
        return ir.ExternalTensor(
            self.path.name,
            offset,
            length,
            ir.DataType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=str(self.path.parent),
        )


def onnx_from_torch(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    path: Path,
    weights: WeightFile,
    *,
    pack: bool = True,
    rounded: bool = False,
    opset: int = 20,
) -> None:
    """Export `module`, called with `inputs` in order, to `path`. Large tensors go to `weights`, in the same directory.

    Shapes are those of `inputs`. pack: store float32 weights in float16 where that is exact. rounded: store weights of two
    dimensions and more so where it is not exact, too, unless a number is beyond float16. opset: version of ONNX's operators.
    From 21 on a GroupNorm is one node.
    The file holds no path, stack trace or name of this machine, so that the same model gives the same bytes.
    """
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    # folded once before the optimizer's rules are tried on every node: a third of the nodes, an eighth of its time
    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    program.optimize()
    _strip(model)
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None and value.const_value.nbytes >= INLINE_BYTES:
            half = _half(value.const_value, rounded=rounded) if pack else None
            if half is None:
                value.const_value = weights.put(value.const_value)
            else:
                _store_half(model.graph, value, weights.put(half))
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _half(tensor: ir.TensorProtocol, *, rounded: bool) -> ir.TensorProtocol | None:
    """The float32 tensor in float16, or None if a value would change. rounded: values may change by rounding."""
    if tensor.dtype != ir.DataType.FLOAT:
        return None
    values = tensor.numpy()
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    fits = np.array_equal(half, values) or (rounded and values.ndim > 1 and bool(np.isfinite(half).all()))
    return ir.tensor(half, name=f"{tensor.name}.half") if fits else None


def _store_half(graph: ir.Graph, value: ir.Value, half: ir.ExternalTensor) -> None:
    """Put `half` and a Cast to float32 in the place of the initializer `value`."""
    stored = ir.Value(name=half.name, shape=half.shape, type=ir.TensorType(half.dtype), const_value=half)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = f"{value.name}.float", value.shape, value.type
    value.replace_all_uses_with(cast.outputs[0])
    del graph.initializers[value.name or ""]
    graph.register_initializer(stored)
    graph.insert_before(graph[0], cast)


def _strip(model: ir.Model) -> None:
    """Drop the exporter's notes: module names, source lines and paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
