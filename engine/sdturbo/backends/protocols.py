"""The shape of a backend: a module that offers and connects, and the objects that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdturbo.backends.choice import Offer
    from sdturbo.backends.keep import InpaintingRun
    from sdturbo.bundle import Bundle
    from sdturbo.bundle.description import Stage

Tensors: TypeAlias = "Mapping[str, NDArray[Any]]"


class Session(Protocol):
    """One compiled stage at one batch size, with buffers of its own. Calls from several threads take turns."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. Tensors have the stage's names, dtypes and shapes. Raises InputError for other inputs."""
        ...


class Program(Protocol):
    """A whole request at one batch size: some rows of the schedule, from noise or from an image. Nothing leaves the device."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """The last `latents` and `image`, with the stages' dtypes and shapes.

        inputs: `input_ids` and `latents`. From an image: `input_ids`, and the encoder's inputs but `step`. For inpainting
        `mask` too, float32 of the shape of latents: 1 where they are drawn anew, 0 where they are kept.
        Raises InputError for other inputs.
        """
        ...


@runtime_checkable
class Recorded(Protocol):
    """A session or program that a device records once. replays: False if that failed, so that it is launched plainly."""

    @property
    def title(self) -> str: ...
    @property
    def replays(self) -> bool: ...


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
    @property
    def form(self) -> str:
        """The form of the graphs that `session` takes: see `bundle.description`."""
        ...

    def session(self, graph: Path, stage: Stage, batch_size: int) -> Session:
        """Compile the ONNX file `graph`. Raises BackendUnavailable if the library refuses it."""
        ...

    def program(
        self,
        sessions: Mapping[str, Session],
        rows: range,
        *,
        image_to_image: bool = False,
        inpainting: InpaintingRun | None = None,
    ) -> Program | None:
        """The stages of a request joined into one, from this backend's own sessions. None if nothing is gained by it.

        rows: of the schedule. image_to_image: the request starts from an image, so `sessions` hold an encoder. inpainting: a
        part of that image is kept.
        """
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
