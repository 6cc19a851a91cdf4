"""sdturbo: a compiled inference engine for SD-Turbo.

    from sdturbo import Pipeline, save_image
    pipe = Pipeline.load("build/sd-turbo")
    save_image(pipe("a photo of a cat").images[0], "cat.png")

Importing this package loads no backend and no numpy. A class or module is imported when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdturbo.errors import (
    BackendUnavailable,
    BundleError,
    Cancelled,
    FilterFailed,
    HubError,
    InvalidRequest,
    OutputError,
    Refused,
    SDTurboError,
)

if TYPE_CHECKING:
    from sdturbo import blend
    from sdturbo.bundle import Bundle
    from sdturbo.image import ContentCredentials, save_image, save_png
    from sdturbo.pipeline import Pipeline
    from sdturbo.request import Filter, Request
    from sdturbo.result import Result

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "Bundle",
    "BundleError",
    "Cancelled",
    "ContentCredentials",
    "Filter",
    "FilterFailed",
    "HubError",
    "InvalidRequest",
    "OutputError",
    "Pipeline",
    "Refused",
    "Request",
    "Result",
    "SDTurboError",
    "blend",
    "save_image",
    "save_png",
]

_LAZY = {
    "Bundle": "bundle",
    "ContentCredentials": "image",
    "Filter": "request",
    "Pipeline": "pipeline",
    "Request": "request",
    "Result": "result",
    "save_image": "image",
    "save_png": "image",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sdturbo.{_LAZY[name]}"), name)
    if name == "blend":
        return import_module("sdturbo.blend")
    raise AttributeError(f"module 'sdturbo' has no attribute {name!r}")
