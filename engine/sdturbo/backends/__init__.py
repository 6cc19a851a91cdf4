"""What a backend is, and the one place that chooses.

A backend is one file with two functions, and imports its library only inside them:
`unavailable()` says why it cannot run here (None if it can), `connect(...)` returns a `Backend`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import Stage
from sdturbo.cpu import available_cpus
from sdturbo.errors import BackendUnavailable, BundleError, InvalidRequest

log = logging.getLogger("sdturbo")

Tensors = Mapping[str, NDArray[Any]]

MODULES = {
    "tensorrt": "sdturbo.backends.nvidia.tensorrt",
    "cuda": "sdturbo.backends.nvidia.onnxruntime",
    "cuda-tensorrt": "sdturbo.backends.nvidia.onnxruntime_tensorrt",
    "openvino": "sdturbo.backends.openvino.backend",
    "onnxruntime": "sdturbo.backends.ort",
    "null": "sdturbo.backends.null",
}
AUTO_ORDER = ("tensorrt", "cuda", "openvino", "onnxruntime")  # fastest first: README, "What runs where"

ON_GPU = ("tensorrt", "cuda")


class Session(Protocol):
    """One stage at one batch size, compiled, with buffers of its own. Calls from several threads take turns."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. Inputs and outputs are those of the stage, with its dtypes and shapes."""
        ...


class Program(Protocol):
    """A whole text-to-image request of one step count and batch size that stays on the device between stages."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """`input_ids` and `latents` to the last `latents` and `image`, with the stages' dtypes and shapes."""
        ...


class Backend(Protocol):
    """A library, a device and a precision, chosen once."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...

    def session(self, graph: Path, stage: Stage, batch_size: int) -> Session:
        """Compile the ONNX file `graph`. Raises BackendUnavailable if the library refuses it."""
        ...

    def program(self, sessions: Mapping[str, Session], steps: range) -> Program | None:
        """The stages of a request joined into one, from this backend's own sessions; None if it has nothing to gain."""
        ...


class _Module(Protocol):
    def unavailable(self) -> str | None: ...
    def connect(
        self, *, device: str | None, precision: str | None, num_threads: int | None, bundle: Bundle | None
    ) -> Backend: ...


def unavailable(name: str) -> str | None:
    """Why the backend cannot run on this machine, with the remedy; None if it can."""
    return _module(name).unavailable()


def connect(
    name: str,
    *,
    device: str | None = None,
    precision: str | None = None,
    num_threads: int | None = None,
    bundle: Bundle | None = None,
) -> Backend:
    """The backend `name`, or with "auto" the first of `AUTO_ORDER` that runs here; never another than was asked for.

    device: "cpu", "cuda:0", …; None is the backend's first. precision: "fp32", "fp16", "bf16" or "int8"; None lets the backend
    take the fastest that it makes of the bundle's graphs. num_threads: CPU threads to use, at most the number of CPUs;
    None means all. bundle: what will run, for backends that cannot run every bundle.
    Raises InvalidRequest for an unknown name or thread count, BackendUnavailable if it cannot run.
    """
    cpus = available_cpus()
    if num_threads is not None and not (type(num_threads) is int and 1 <= num_threads <= cpus):
        raise InvalidRequest(f"Got num_threads={num_threads!r}; this machine has {cpus} CPUs, so expected 1 to {cpus}.")
    if precision is not None and not isinstance(precision, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got precision={precision!r}; expected a name such as fp32, or None.")
    if name != "auto":
        reason = unavailable(name)
        if reason:
            raise BackendUnavailable(f"The backend {name!r} cannot run here: {reason}")
        try:
            return _module(name).connect(device=device, precision=precision, num_threads=num_threads, bundle=bundle)
        except (ImportError, OSError, RuntimeError) as error:  # what broken installations of the libraries raise
            raise BackendUnavailable(
                f"The backend {name!r} cannot run here: its library is installed but does not load ({error})."
                " Install it again, or use another backend."
            ) from error
    reasons: list[str] = []
    for candidate in AUTO_ORDER:
        try:
            backend = connect(candidate, device=device, precision=precision, num_threads=num_threads, bundle=bundle)
        except BackendUnavailable as error:
            there = candidate in ON_GPU and unavailable(candidate) is None  # its library is installed: it was wanted
            log.log(logging.WARNING if there else logging.INFO, "passed over: %s", error)
            reasons.append(f"  - {error}")
            continue
        log.info("backend %s %s on %s in %s", backend.name, backend.version, backend.device, backend.precision)
        return backend
    raise BackendUnavailable("No backend can run here:\n" + "\n".join(reasons))


def check_tensors(graph: Path, stage: Stage, batch_size: int, found: Mapping[str, Sequence[int]]) -> None:
    """Raise BundleError unless a compiled graph's tensors (name -> shape) are those that the bundle declares."""
    declared = {spec.name: spec.shape_at(batch_size) for spec in (*stage.inputs, *stage.outputs)}
    shapes = {name: tuple(shape) for name, shape in found.items()}
    if shapes != declared:
        raise BundleError(graph, [f"its tensors are {shapes}, but the bundle declares {declared}: build it again"])


def check_precision(
    name: str, precision: str | None, offered: Sequence[str], bundle: Bundle | None, *, default: str = "fp32"
) -> str:
    """The precision that a backend computes in which leaves it to the graphs: theirs.

    Raises BackendUnavailable if it offers no such precision, or the caller asked for another.
    """
    graphs = bundle.precision if bundle is not None else precision or default
    if graphs not in offered:
        raise BackendUnavailable(
            f"The backend {name!r} has no precision {graphs!r} here; expected {' or '.join(offered)}."
        )
    if precision not in (None, graphs):
        raise BackendUnavailable(
            f"The backend {name!r} computes this bundle in {graphs}, as its graphs say, not in {precision!r}; leave the"
            f" precision out, or build a bundle with `sdturbo-export build --precision {precision}`."
        )
    return graphs


def _module(name: str) -> _Module:
    if not isinstance(name, str) or name not in MODULES:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Unknown backend {name!r}; expected auto, {', '.join(MODULES)}.")
    return cast("_Module", importlib.import_module(MODULES[name]))
