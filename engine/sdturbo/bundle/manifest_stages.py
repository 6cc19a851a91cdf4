"""The stages of `bundle.json`, checked against files, batch sizes and picture sizes. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdturbo.bundle.description import DTYPES, STAGES, SYMBOLS, GraphName, Stage, TensorSpec
from sdturbo.bundle.fields import Fields, Json, is_count


def read_stages(data: Json, faults: list[str]) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for name in STAGES:
        if name not in data:
            faults.append(f"stage {name} is missing")
            continue
        where = f"stages.{name}"
        fields = Fields(data[name], where, faults)
        stages[name] = Stage(
            name,
            _tensors(fields.get("inputs", list, []), f"{where}.inputs", faults),
            _tensors(fields.get("outputs", list, []), f"{where}.outputs", faults),
            _graphs(fields.get("graphs", list, []), f"{where}.graphs", faults),
        )
    return stages


def _graphs(data: list[Any], where: str, faults: list[str]) -> dict[GraphName, str]:
    graphs: dict[GraphName, str] = {}
    for i, entry in enumerate(data):
        fields = Fields(entry, f"{where}[{i}]", faults)
        name = GraphName(**fields.read(GraphName))
        if name in graphs:
            faults.append(f"{where}[{i}] is named as another graph: {name}")
        graphs[name] = fields.get("file", str, "")
    return graphs


def check_graphs(
    stage: Stage,
    batch_sizes: tuple[int, ...],
    sizes: tuple[tuple[int, int], ...],
    files: Mapping[str, object],
    faults: list[str],
) -> None:
    """Every graph is a listed file, and there is a plain one for each batch size and picture size."""
    where = f"stages.{stage.name}"
    for name, file in stage.graphs.items():
        if file not in files:
            faults.append(f"{where}: the graph {file!r} is not a listed file")
        if stage.is_sized != bool(name.height and name.width):
            expected = "a height and a width" if stage.is_sized else "neither height nor width"
            faults.append(f"{where}: the graph {file!r} has {name.height}x{name.width}, expected {expected}")
    for batch_size in batch_sizes:
        for height, width in sizes if stage.is_sized else ((0, 0),):
            if stage.graph(GraphName(batch_size, height, width)) is None:
                at = f" and {height}x{width} pixels" if stage.is_sized else ""
                faults.append(f"{where}: no graph for batch size {batch_size}{at}")


def _tensors(data: list[Any], where: str, faults: list[str]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for entry in data:
        fields = Fields(entry, where, faults)
        shape = tuple(fields.get("shape", list, []))
        spec = TensorSpec(fields.get("name", str, ""), fields.get("dtype", str, ""), shape)
        if spec.dtype not in DTYPES:
            faults.append(f"{where}: {spec.name} has dtype {spec.dtype!r}, expected one of {', '.join(DTYPES)}")
        if not all(size in SYMBOLS if isinstance(size, str) else is_count(size) for size in spec.shape):
            expected = f"positive sizes or {', '.join(SYMBOLS)}"
            faults.append(f"{where}: {spec.name} has shape {list(spec.shape)}, expected {expected}")
            spec = TensorSpec(spec.name, spec.dtype, ())
        specs.append(spec)
    if not specs:
        faults.append(f"{where} is empty")
    return tuple(specs)
