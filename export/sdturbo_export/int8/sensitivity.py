"""Each layer's own damage: the relative L2 error of the stage's output with this layer alone in 8 bits.

One input is enough to see that most layers do little. Only layers that come near the limit are measured on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from sdturbo_export.int8.layers import Layer
from sdturbo_export.int8.qdq import Range, insert_qdq
from sdturbo_export.int8.session import GraphSession
from sdturbo_export.proof.distance import relative_l2
from sdturbo_export.proof.walk import Arrays


def measure_damage(
    graph: Path,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    points: Sequence[Arrays],
    limit: float,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """layer -> the largest relative L2 error over `points`, inputs of the stage. The first point is enough for a layer that
    does not exceed limit / 2 there. tick: called after each layer."""
    exact = GraphSession(ir.load(graph), graph.parent, fuse=False)
    outputs = [exact.run(point)[0] for point in points]
    damage: dict[str, float] = {}
    for layer in layers:
        model = ir.load(graph)
        insert_qdq(model, [layer], ranges)
        session = GraphSession(model, graph.parent, fuse=False)
        errors = (relative_l2(session.run(point)[0], output) for point, output in zip(points, outputs, strict=True))
        first = next(errors)
        damage[layer.name] = max(itertools.chain([first], errors)) if first > limit / 2 else first
        tick()
    return damage
