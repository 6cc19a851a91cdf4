"""`keep.keep` as an ONNX graph of static shapes, for ONNX Runtime's GPU providers. Written without the onnx package.

It belongs to no bundle: bundles that were built before are inpainted as one recording too.
Field numbers: onnx/onnx.proto, version 9 of ONNX's intermediate representation.
"""

from __future__ import annotations

import struct

from sdturbo.backends.keep import KEEP
from sdturbo.bundle.description import TensorSpec

_FLOAT = 1  # TensorProto.DataType
_NODES = (
    ("Mul", ("noise", "sigma"), "noise_at_sigma"),
    ("Add", ("start", "noise_at_sigma"), "noised"),
    ("Sub", ("one", "mask"), "outside"),
    ("Mul", ("noised", "outside"), "unmasked"),
    ("Mul", ("latents", "mask"), "masked"),
    ("Add", ("unmasked", "masked"), "kept"),
)


def keep_graph(batch_size: int, height: int, width: int) -> bytes:
    """A ModelProto of operator set 17. height, width: of the pictures in pixels."""
    stage = KEEP.at(height, width)
    graph = b"".join(_field(1, _node(*node)) for node in _NODES) + _field(2, b"keep")
    graph += _field(5, _field(2, _FLOAT) + _field(8, b"one") + _field(9, struct.pack("<f", 1)))
    graph += b"".join(_field(11, _value(spec, batch_size)) for spec in stage.inputs)
    graph += b"".join(_field(12, _value(spec, batch_size)) for spec in stage.outputs)
    return _field(1, 9) + _field(7, graph) + _field(8, _field(2, 17))


def _node(operator: str, inputs: tuple[str, ...], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(4, operator.encode())


def _value(spec: TensorSpec, batch_size: int) -> bytes:
    dimensions = b"".join(_field(1, _field(1, size)) for size in spec.shape_at(batch_size))
    tensor = _field(1, _FLOAT) + _field(2, dimensions)
    return _field(1, spec.name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
