"""TensorRT for RTX, which has TensorRT's parser and builder, and needs no GPU to compile."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from sdturbo.errors import BackendUnavailable

PACKAGE = "tensorrt-rtx-cu13==1.7.1.116"


def load_rtx() -> ModuleType:
    """The module `tensorrt_rtx`. Raises BackendUnavailable with the remedy."""
    try:
        return importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError, RuntimeError) as error:  # of a broken installation
        raise BackendUnavailable(
            f"TensorRT for RTX does not load here ({error}): `pip install {PACKAGE}`, 97 MB for x86-64."
        ) from error


def load_rtx_as_tensorrt() -> None:
    """Let `import tensorrt` in this process mean TensorRT for RTX. Raises BackendUnavailable."""
    sys.modules["tensorrt"] = load_rtx()
