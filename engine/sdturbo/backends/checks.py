"""Checks that every backend makes: what a compiled graph has, what a graph's precision leaves open."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdturbo.bundle.description import Stage
from sdturbo.errors import BackendUnavailable, BundleError, NotOffered

if TYPE_CHECKING:
    from sdturbo.bundle import Bundle


def check_tensors(graph: Path, stage: Stage, batch_size: int, found: Mapping[str, Sequence[int]]) -> None:
    """Raise BundleError unless a compiled graph's tensors (name -> shape) are those that the bundle declares."""
    declared = {spec.name: spec.shape_at(batch_size) for spec in (*stage.inputs, *stage.outputs)}
    shapes = {name: tuple(shape) for name, shape in found.items()}
    if shapes != declared:
        raise BundleError(graph, [f"its tensors are {shapes}, but the bundle declares {declared}: build it again"])


def by_graph(precisions: Sequence[str], bundle: Bundle | None) -> list[str]:
    """`precisions` in order, but the one of the bundle's graphs first: for backends that leave the precision to them."""
    return sorted(precisions, key=lambda precision: bundle is None or precision != bundle.precision)


def graph_refusal(
    backend: str, precision: str, precisions: Sequence[str], bundle: Bundle | None
) -> BackendUnavailable | None:
    """Why a backend does not compute `bundle` in `precision`, if it leaves that to the graphs and takes `precisions`."""
    if bundle is None or bundle.precision == precision:
        return None
    if bundle.precision not in precisions:
        return BackendUnavailable(
            f"The backend {backend!r} has no precision {bundle.precision!r} here; expected {' or '.join(precisions)}."
        )
    return BackendUnavailable(
        f"The backend {backend!r} computes this bundle in {bundle.precision}, as its graphs say, not in {precision!r}; leave"
        f" the precision out, or build a bundle with `sdturbo-export build --precision {precision}`."
    )


def not_installed(backend: str, library: str, extra: str, *, package: str | None = None) -> NotOffered | None:
    """Why a backend cannot run at all, if its library is not installed. package, extra: what brings it, in pip's words."""
    try:
        is_there = importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # of the package around it
        is_there = False
    if is_there:
        return None
    return NotOffered(
        f"The backend {backend!r} cannot run here: the package {package or library} is not installed;"
        f" `pip install 'sdturbo[{extra}]'`"
    )
