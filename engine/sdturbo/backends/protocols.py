"""The shape of a backend: a module that offers and connects, and the objects that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdturbo.backends.choice import Offer
    from sdturbo.bundle import Bundle
    from sdturbo.bundle.description import Stage

Tensors: TypeAlias = "Mapping[str, NDArray[Any]]"


class Session(Protocol):
    """One compiled stage at one batch size, with buffers of its own. Calls from several threads take turns."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. Tensors have the stage's names, dtypes and shapes. Raises InputError for other inputs."""
        ...


class Program(Protocol):
    """Text-to-image at one step count and batch size. Its tensors stay on the device between stages."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """From `input_ids` and `latents` to the last `latents` and `image`, with the stages' dtypes and shapes.

        Raises InputError for other inputs.
        """
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
        """The stages of a request joined into one, from this backend's own sessions. None if nothing is gained by it."""
        ...


class BackendModule(Protocol):
    """The module of a backend."""

    def offers(self, bundle: Bundle | None) -> list[Offer]:
        """Every device and precision that the backend knows, the preferred first, with a refusal where it does not run.

        bundle: the bundle to run. None asks for any bundle. There is at least one offer, which may refuse everything.
        """
        ...

    def connect(self, offer: Offer, num_threads: int | None, bundle: Bundle | None) -> Backend:
        """The offered backend. num_threads: CPU threads, None for all. Raises BackendUnavailable."""
        ...
