"""The weight files of an ONNX graph, without the onnx package. Walks over the protobuf wire format.

An ONNX file may name any path as external data. A bundle's graphs may only read files of the bundle, so the names are
checked before a backend opens the graph. Field numbers: onnx/onnx.proto, version 10 of ONNX's intermediate representation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# message -> {field number: message that it contains}. Everything else is skipped
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_locations(path: Path) -> set[str]:
    """Every location of external data that the ONNX file names. Raises ValueError if it is no well-formed protobuf."""
    data = path.read_bytes()
    locations: set[str] = set()
    todo = [("model", 0, len(data))]
    while todo:
        message, start, end = todo.pop()
        children = _CHILDREN[message]
        for field, first, last in _submessages(data, start, end):
            child = children.get(field)
            if child == "entry":
                # a StringStringEntryProto: field 1 is the key, field 2 the value
                entry = {number: data[i:j].decode() for number, i, j in _submessages(data, first, last)}
                if entry.get(1) == "location":
                    locations.add(entry.get(2, ""))
            elif child:
                todo.append((child, first, last))
    return locations


def _submessages(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each length-delimited field between `position` and `end`."""
    while position < end:
        tag, position = _varint(data, position, end)
        if not 0 < tag >> 3 < 2**29:  # other parsers drop the high bits and see another field
            raise ValueError(f"field number {tag >> 3} is out of range")
        wire = tag & 7
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire == _FIXED64:
            position += 8
        elif wire == _FIXED32:
            position += 4
        elif wire == _BYTES:
            length, position = _varint(data, position, end)
            if position + length > end:
                raise ValueError("a field runs past the end of the file")
            yield tag >> 3, position, position + length
            position += length
        else:
            raise ValueError(f"unknown protobuf wire type {wire}")
    if position != end:
        raise ValueError("the file ends inside a field")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number runs past the end of the file")
