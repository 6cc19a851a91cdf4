"""All backends, and the one place that chooses among them.

A backend is added by one line of `_registered`, or from outside this package by `register`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

from sdturbo.backends.choice import BackendChoice, Offer, first_running, fitting, refuse_all
from sdturbo.cpu import threads_of_quota
from sdturbo.errors import BackendUnavailable, InvalidRequest, NotOffered

if TYPE_CHECKING:
    from sdturbo.backends.protocols import Backend, BackendModule
    from sdturbo.bundle import Bundle

log = logging.getLogger("sdturbo")

T = TypeVar("T")
BROKEN = (ImportError, OSError, RuntimeError)  # raised by broken installations of the libraries


@dataclass(frozen=True, slots=True)
class _Registered:
    """module: a `BackendModule` by its full name. automatic: whether "auto" may take it. listed: whether `names` tells it."""

    module: str
    automatic: bool = True
    listed: bool = True


_registered = {  # fastest first: README.md, "What runs where"
    "tensorrt": _Registered("sdturbo.backends.nvidia.tensorrt"),
    "cuda": _Registered("sdturbo.backends.nvidia.onnxruntime"),
    "cuda-tensorrt": _Registered("sdturbo.backends.nvidia.onnxruntime_tensorrt", automatic=False),
    "openvino": _Registered("sdturbo.backends.openvino.backend"),
    "onnxruntime": _Registered("sdturbo.backends.ort"),
    "null": _Registered("sdturbo.backends.null", automatic=False, listed=False),  # draws noise, for tests
}


def register(name: str, module: str, *, automatic: bool = True) -> None:
    """Add a backend behind the others. module: the full name of a `BackendModule`. automatic: whether "auto" may take it.

    Raises InvalidRequest if the name is taken.
    """
    if name == "auto" or name in _registered:
        raise InvalidRequest(f"Got the name {name!r} for a backend, which is taken. Choose another.")
    _registered[name] = _Registered(module, automatic)


def names(*, automatic: bool = False) -> tuple[str, ...]:
    """Every backend that draws pictures, or those that "auto" may take, in its order."""
    return tuple(name for name, entry in _registered.items() if entry.listed and (entry.automatic or not automatic))


def offers(name: str, bundle: Bundle | None = None) -> list[Offer]:
    """The backend's offers for `bundle` (None: for any) on this machine, the preferred first. There is at least one.

    Raises InvalidRequest for an unknown name, BundleError if the bundle's plans are at fault.
    """
    try:
        return _module(name).offers(bundle)
    except BROKEN as error:
        return refuse_all(name, _does_not_load(name, error))


def offer_for(choice: BackendChoice, bundle: Bundle | None = None) -> Offer:
    """The offer that `connect` takes, or its refusal, for a backend named in `choice`. Raises as `offers` does."""
    return first_running(fitting(choice, offers(choice.backend, bundle)))


def connect(choice: BackendChoice, bundle: Bundle | None = None) -> Backend:
    """The named backend, or with "auto" the first that runs here. A named one is never replaced.

    bundle: the bundle to run, for backends that cannot run every bundle.
    Raises InvalidRequest for an unknown name, BackendUnavailable if it cannot run.
    """
    return load_first(choice, bundle, lambda backend: backend)


def load_first(choice: BackendChoice, bundle: Bundle | None, load: Callable[[Backend], T]) -> T:
    """The result of `load` for the named backend, or with "auto" for the first with which it succeeds.

    "auto" passes over a backend that does not run here or that refuses while it is loaded. The log says so.
    Raises InvalidRequest for an unknown name, BackendUnavailable if nothing runs, and the other errors of `load`.
    """
    if choice.backend != "auto":
        return load(_accept(offer_for(choice, bundle), choice.num_threads, bundle))
    reasons: list[str] = []
    for name in names(automatic=True):
        candidates = fitting(replace(choice, backend=name), offers(name, bundle))
        if (refusal := first_running(candidates).refusal) is not None:
            log.log(logging.INFO if isinstance(refusal, NotOffered) else logging.WARNING, "passed over: %s", refusal)
            reasons.append(f"  - {refusal}")
        for offer in (offer for offer in candidates if offer.runs):
            try:
                backend = _accept(offer, choice.num_threads, bundle)
                loaded = load(backend)
            except BackendUnavailable as error:
                log.warning("passed over %s: %s", offer, error)
                reasons.append(f"  - {error}")
                continue
            log.info("backend %s %s on %s in %s", backend.name, backend.version, backend.device, backend.precision)
            return loaded
    raise BackendUnavailable("No backend can run here:\n" + "\n".join(reasons))


def _accept(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> Backend:
    if offer.refusal is not None:
        raise offer.refusal
    try:
        return _module(offer.backend).connect(offer, num_threads or threads_of_quota(), bundle)
    except BROKEN as error:
        raise _does_not_load(offer.backend, error) from error


def _does_not_load(name: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"The backend {name!r} cannot run here: its library is installed but does not load ({error})."
        " Install it again, or use another backend."
    )


def _module(name: str) -> BackendModule:
    if not isinstance(name, str) or name not in _registered:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Unknown backend {name!r}, expected auto, {', '.join(_registered)}.")
    return cast("BackendModule", importlib.import_module(_registered[name].module))
