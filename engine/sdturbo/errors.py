"""The errors of sdturbo. Each message names the value that came, the expected one and the remedy.

`exit_code` is the exit status of the commands (engine/README.md, "Errors and exit codes").
"""

from __future__ import annotations

from collections.abc import Sequence


class SDTurboError(Exception):
    """Base of every error that sdturbo raises on purpose."""

    exit_code = 1


class InvalidRequest(SDTurboError, ValueError):
    """An argument of the caller cannot be used: prompt, seed, steps, strength, image, option."""

    exit_code = 2


class BundleError(SDTurboError):
    """A bundle cannot be used. `faults` lists all of its faults."""

    exit_code = 3

    def __init__(self, where: object, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{where} is not a usable bundle:\n{lines}")


class BackendUnavailable(SDTurboError):
    """A backend, device or precision cannot run here. No other is used in its place."""

    exit_code = 4


class NotOffered(BackendUnavailable):
    """A backend's library is not installed, or it has no such device or precision at all."""


class PlanMismatch(BackendUnavailable):
    """No compiled plan of the bundle may run here."""


class InputError(SDTurboError, TypeError):
    """A session got tensors of another name, shape or dtype than its stage takes. A fault of the calling program."""


class OutputError(SDTurboError):
    """A stage produced values that cannot be a picture: non-finite latents or a constant image."""

    exit_code = 5


class SigningFailed(SDTurboError):
    """A picture could not be signed, for example because the certificate has ended. No file was written."""


class Refused(SDTurboError):
    """The caller's filter refused a prompt or a picture. `reason`: in the filter's words. No picture is given."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The filter refused this request: {reason}")


class FilterFailed(SDTurboError):
    """The caller's filter raised an error or gave no verdict, so the request was refused. No picture is given."""


class HubError(SDTurboError):
    """The Hugging Face Hub gave or took nothing: no such repository or revision, no access, no network, a full disk."""

    exit_code = 7


class Cancelled(SDTurboError):
    """The caller's cancellation was honoured between two stages. No picture was made."""

    exit_code = 130
