"""The range that each activation is rounded in, which is that of least squared error over real trajectories.

The graph itself gives each tensor's least and greatest value and a sample of its values, so that no whole tensor leaves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sdturbo_export.int8.qdq import Range, activation_grid, initializer
from sdturbo_export.int8.session import GraphSession
from sdturbo_export.proof.walk import Arrays

SAMPLE = 1024  # values of a tensor from each run
_SHARES = [share / 40 for share in range(12, 41)]  # of the whole range, which a few outliers may stretch


def measure_ranges(graph: Path, names: Sequence[str], runs: Iterable[Arrays]) -> dict[str, Range]:
    """(lo, hi) of each tensor called `names` in the ONNX file `graph`, over `runs` of its inputs."""
    session = GraphSession(_with_statistics(ir.load(graph), names), graph.parent, fuse=True)
    low = dict.fromkeys(names, 0.0)
    high = dict.fromkeys(names, 0.0)
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for inputs in runs:
        statistics = iter(session.run(inputs))  # three per name
        for name, least, most, sample in zip(names, statistics, statistics, statistics, strict=True):
            low[name], high[name] = min(low[name], float(least)), max(high[name], float(most))
            samples[name].append(sample)
    return {name: best_range(np.concatenate(samples[name]), low[name], high[name]) for name in names}


def best_range(sample: NDArray[np.float32], lo: float, hi: float) -> Range:
    """The share of (lo, hi) in which 256 steps leave the least squared error, for lo <= 0 <= hi."""
    if lo == hi:
        return (0.0, 1.0)  # always zero
    return min(((share * lo, share * hi) for share in _SHARES), key=lambda limits: _squared_error(sample, *limits))


def _squared_error(sample: NDArray[np.float32], lo: float, hi: float) -> float:
    scale, zero = activation_grid(lo, hi)
    back = (np.clip(np.rint(sample / scale) + zero, 0, 255) - zero) * scale
    return float(np.square(sample - back, dtype=np.float64).sum())


def _with_statistics(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The graph with three outputs per tensor in the place of its own: least, greatest, and every n-th value."""
    graph = model.graph
    values = {value.name: value for value in (*graph.inputs, *(out for node in graph for out in node.outputs))}
    graph.outputs.clear()

    def add(name: str, op: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        return node.outputs[0]

    def numbers(name: str, number: int) -> ir.Value:
        return initializer(graph, name, np.array([number], np.int64))

    flat, start, end = numbers("stat.flat", -1), numbers("stat.start", 0), numbers("stat.end", np.iinfo(np.int64).max)
    for i, name in enumerate(names):
        value = values[name]
        size = int(np.prod(value.shape.numpy())) if value.shape is not None else SAMPLE
        stride = numbers(f"stat.{i}.stride", max(1, size // SAMPLE) | 1)  # odd, so that it moves over the columns
        line = add(f"stat.{i}.line", "Reshape", [value, flat])
        graph.outputs.append(add(f"stat.{i}.least", "ReduceMin", [line], keepdims=0))
        graph.outputs.append(add(f"stat.{i}.most", "ReduceMax", [line], keepdims=0))
        graph.outputs.append(add(f"stat.{i}.sample", "Slice", [line, start, end, start, stride]))
    return model
