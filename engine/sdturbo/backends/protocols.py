"""What a backend is: a module that offers and connects, and the objects that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from sdturbo.backends.choice import Offer
    from sdturbo.bundle import Bundle
    from sdturbo.bundle.description import Stage

Tensors: TypeAlias = "Mapping[str, NDArray[Any]]"


class Session(Protocol):
    """One stage at one batch size, compiled, with buffers of its own. Calls from several threads take turns."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. Inputs and outputs are those of the stage, with its dtypes and shapes.

        Raises InputError for any other input.
        """
        ...


class Program(Protocol):
    """A whole text-to-image request of one step count and batch size that stays on the device between stages."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """`input_ids` and `latents` to the last `latents` and `image`, with the stages' dtypes and shapes.

        Raises InputError for any other input.
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
        """The stages of a request joined into one, from this backend's own sessions; None if it has nothing to gain."""
        ...


class BackendModule(Protocol):
    """The module of a backend. It imports its library inside its functions alone."""

    def offers(self, bundle: Bundle | None) -> list[Offer]:
        """Every device and precision that the backend knows, its preferred first, refused where it does not run here.

        bundle: the bundle to run; None asks for any bundle. At least one offer, which may refuse everything.
        """
        ...

    def connect(self, offer: Offer, num_threads: int | None, bundle: Bundle | None) -> Backend:
        """The backend as it was offered. num_threads: CPU threads, None for all. Raises BackendUnavailable."""
        ...
