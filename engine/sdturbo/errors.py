"""What can go wrong, as types. Each message says what came, what was expected and what to do.

`exit_code` is the status of the command line when the error reaches it (engine/README.md, "Errors and exit codes").
"""

from __future__ import annotations

from collections.abc import Sequence


class SDTurboError(Exception):
    """Base of every error this product raises on purpose."""

    exit_code = 1


class InvalidRequest(SDTurboError, ValueError):
    """An argument of the caller cannot be used: prompt, seed, steps, strength, image, option."""

    exit_code = 2


class BundleError(SDTurboError):
    """A bundle cannot be used. `faults` lists everything found wrong with it, not only the first."""

    exit_code = 3

    def __init__(self, where: object, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{where} is not a usable bundle:\n{lines}")


class BackendUnavailable(SDTurboError):
    """The backend, device or precision that was asked for cannot run here; nothing else is used instead."""

    exit_code = 4


class NotOffered(BackendUnavailable):
    """A backend's library is not installed, or it has no such device or precision at all."""


class PlanMismatch(BackendUnavailable):
    """No compiled plan of the bundle may run here. `differs` names the fields of its key that do not match."""

    def __init__(self, message: str, differs: Sequence[str]) -> None:
        self.differs = tuple(differs)
        super().__init__(message)


class InputError(SDTurboError, TypeError):
    """A session got other tensors than its stage takes, by name, shape or dtype: a fault of the program that runs it, not of
    a request."""


class OutputError(SDTurboError):
    """An engine produced values that cannot be a picture: non-finite latents or a constant image."""

    exit_code = 5


class Cancelled(SDTurboError):
    """The caller's cancellation was honoured between two stages; no picture was made."""

    exit_code = 130
