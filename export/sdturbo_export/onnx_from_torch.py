"""A torch module to an ONNX file with static shapes; graphs of different batch size share one file of weights."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn

INLINE_BYTES = 1024  # smaller tensors stay in the graph file
ALIGNMENT = 4096  # a page, so that weights can be memory-mapped


class WeightFile:
    """External data that several graphs refer to: each distinct tensor is written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[tuple[str, bytes], tuple[int, int]] = {}
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The tensor as a reference into this file."""
        data = np.ascontiguousarray(tensor.numpy())
        key = (str(tensor.dtype), hashlib.sha256(data).digest())
        if key not in self._written:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data)
            self._written[key] = (offset, data.nbytes)
        offset, length = self._written[key]
        return ir.ExternalTensor(
            self.path.name,
            offset,
            length,
            ir.DataType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            name=tensor.name or "",
            base_dir=str(self.path.parent),
        )


def onnx_from_torch(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], path: Path, weights: WeightFile
) -> None:
    """Export `module`, called with `inputs` in order, to `path`; large tensors go to `weights`, in the same directory.

    Shapes are those of `inputs`. The file holds no path, stack trace or name of this machine, so that the same model
    gives the same bytes.
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
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    _fold(model)
    program.optimize()
    _strip(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes >= INLINE_BYTES:
            value.const_value = weights.put(value.const_value)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _fold(model: ir.Model) -> None:
    """Fold constants once before the optimizer's rules are tried on every node: a third of the nodes, an eighth of its time."""
    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


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
