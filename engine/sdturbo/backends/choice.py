"""The choice of a caller and the offers of a backend: devices and precisions. Knows no backend and no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdturbo.cpu import available_cpus
from sdturbo.errors import BackendUnavailable, InvalidRequest, NotOffered

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ANY = "any"  # device and precision of an offer that refuses everything


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The choice of a caller. None leaves a field to the backend.

    backend: a registered name, or "auto". device: "cpu", "cuda:0", …, and "cuda" is "cuda:0". precision: one of `PRECISIONS`.
    num_threads: CPU threads, at most the number of CPUs. None means all that may be used.
    Raises InvalidRequest for another type, or for more threads than this machine has.
    """

    backend: str = "auto"
    device: str | None = None
    precision: str | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name, example in (("device", "cpu"), ("precision", "fp32")):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"Got {name}={value!r}, expected a name such as {example}, or None.")
        threads, cpus = self.num_threads, available_cpus()
        if threads is not None and not (type(threads) is int and 1 <= threads <= cpus):
            raise InvalidRequest(
                f"Got num_threads={threads!r}, expected 1 to {cpus}, because this machine has {cpus} CPUs."
            )


@dataclass(frozen=True, slots=True)
class Offer:
    """A device and precision of a backend. refusal: the error, with the remedy, if they do not run here."""

    backend: str
    device: str
    precision: str
    refusal: BackendUnavailable | None = None

    @property
    def runs(self) -> bool:
        return self.refusal is None

    @property
    def refuses_all(self) -> bool:
        return self.device == ANY

    @property
    def reason(self) -> str | None:
        """The words of the refusal."""
        return None if self.refusal is None else str(self.refusal)

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision}"


def refuse_all(backend: str, refusal: BackendUnavailable) -> list[Offer]:
    """The offers of a backend that runs nothing here."""
    return [Offer(backend, ANY, ANY, refusal)]


def fitting(choice: BackendChoice, offers: Sequence[Offer]) -> list[Offer]:
    """The offers of a backend that `choice` allows, in their order. offers: all of them.

    There is at least one. If the backend has no such device or precision at all, its refusal names those that it has.
    """
    backend = offers[0].backend
    if offers[0].refuses_all:
        return list(offers)
    if choice.device is not None:
        devices = list(dict.fromkeys(offer.device for offer in offers))
        device = next((name for name in (choice.device, f"{choice.device}:0") if name in devices), None)
        if device is None:
            message = (
                f"The backend {backend!r} has no device {choice.device!r} here, expected one of {', '.join(devices)}."
            )
            return [Offer(backend, choice.device, ANY, NotOffered(message))]
        offers = [offer for offer in offers if offer.device == device]
    if choice.precision is None:
        return list(offers)
    matching = [offer for offer in offers if offer.precision == choice.precision]
    precisions = ", ".join(dict.fromkeys(offer.precision for offer in offers))
    message = f"The backend {backend!r} has no precision {choice.precision!r} here, expected one of {precisions}."
    return matching or [Offer(backend, offers[0].device, choice.precision, NotOffered(message))]


def first_running(offers: Sequence[Offer]) -> Offer:
    """The first offer that runs, or else the first."""
    return next((offer for offer in offers if offer.runs), offers[0])
