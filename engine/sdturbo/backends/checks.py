"""Checks that backends share: inputs of a session, tensors of a compiled graph, precisions of a bundle, missing libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdturbo.bundle.description import Stage
from sdturbo.errors import BackendUnavailable, BundleError, InputError, NotOffered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdturbo.backends.protocols import Tensors
    from sdturbo.bundle import Bundle


def check_inputs(expected: Mapping[str, NDArray[Any]], inputs: Tensors) -> None:
    """Raise InputError unless `inputs` have the names, shapes and dtypes of `expected`. A NumPy scalar is of shape ()."""
    if inputs.keys() != expected.keys():
        raise InputError(f"Got the inputs {', '.join(inputs) or 'none'}. Expected {', '.join(expected)}.")
    for name, array in expected.items():
        value = inputs[name]
        if getattr(value, "shape", None) != array.shape or value.dtype != array.dtype:
            actual = f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__
            expectation = f"expected {array.dtype} {array.shape}. Nothing is cast or repeated."
            raise InputError(f"Got {name} as {actual}, {expectation}")


def copy_inputs(buffers: Mapping[str, NDArray[Any]], inputs: Tensors) -> None:
    """Copy each input into the buffer of its name. Raises InputError as `check_inputs` does, before anything is copied."""
    check_inputs(buffers, inputs)
    for name, buffer in buffers.items():
        buffer[...] = inputs[name]


def check_tensors(graph: Path, stage: Stage, batch_size: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise BundleError unless a compiled graph's shapes by name are those that the bundle declares."""
    declared = {spec.name: spec.shape_at(batch_size) for spec in (*stage.inputs, *stage.outputs)}
    compiled = {name: tuple(shape) for name, shape in shapes.items()}
    if compiled != declared:
        raise BundleError(graph, [f"its tensors are {compiled}, but the bundle declares {declared}: build it again"])


def by_graph(precisions: Sequence[str], bundle: Bundle | None) -> list[str]:
    """`precisions` with that of the bundle's graphs first, for backends that leave the precision to the graphs."""
    return sorted(precisions, key=lambda precision: bundle is None or precision != bundle.precision)


def graph_refusal(
    backend: str, precision: str, precisions: Sequence[str], bundle: Bundle | None, *, graphs: str | None = None
) -> BackendUnavailable | None:
    """The refusal of a precision by a backend that leaves it to the graphs.

    precisions: those of the graphs that the backend takes. graphs: their precision for this one, by default the same.
    """
    graphs = graphs or precision
    if bundle is None or bundle.precision == graphs:
        return None
    if bundle.precision not in precisions:
        return BackendUnavailable(
            f"The backend {backend!r} takes bundles whose graphs are in {' or '.join(precisions)}, not in {bundle.precision}."
            f" Use another backend, or build a bundle with `sdturbo-export build --precision {graphs}`."
        )
    return BackendUnavailable(
        f"The backend {backend!r} computes this bundle in {bundle.precision}, as its graphs say, not in {precision!r}. Leave"
        f" the precision out, or build a bundle with `sdturbo-export build --precision {graphs}`."
    )


def not_installed(backend: str, library: str, extra: str, *, package: str | None = None) -> NotOffered | None:
    """The refusal of a backend whose library is not installed. extra: of sdturbo, brings `package` (default: library)."""
    with suppress(ModuleNotFoundError):  # of the package around it
        if importlib.util.find_spec(library) is not None:
            return None
    return NotOffered(
        f"The backend {backend!r} cannot run here: the package {package or library} is not installed."
        f" In a clone of sdturbo, `pip install '.[{extra}]'` brings it."
    )
