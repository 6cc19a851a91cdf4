"""sdturbo: a compiled inference engine for SD-Turbo.

    from sdturbo import Pipeline
    pipe = Pipeline.load("build/sd-turbo")
    pipe("a photo of a cat").images[0].save("cat.png")

Importing this package loads no backend and no numpy. A class or module is imported when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdturbo.errors import (
    BackendUnavailable,
    BundleError,
    Cancelled,
    HubError,
    InvalidRequest,
    OutputError,
    SDTurboError,
)

if TYPE_CHECKING:
    from sdturbo import blend
    from sdturbo.bundle import Bundle
    from sdturbo.image import save_png
    from sdturbo.pipeline import Pipeline
    from sdturbo.request import Request
    from sdturbo.result import Result

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "Bundle",
    "BundleError",
    "Cancelled",
    "HubError",
    "InvalidRequest",
    "OutputError",
    "Pipeline",
    "Request",
    "Result",
    "SDTurboError",
    "blend",
    "save_png",
]

_LAZY = {"Bundle": "bundle", "Pipeline": "pipeline", "Request": "request", "Result": "result", "save_png": "image"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sdturbo.{_LAZY[name]}"), name)
    if name == "blend":
        return import_module("sdturbo.blend")
    raise AttributeError(f"module 'sdturbo' has no attribute {name!r}")
