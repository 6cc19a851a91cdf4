"""The contract between export and runtime. `Bundle.load` validates a directory. Nothing here knows a backend."""

from sdturbo.bundle.bundle import Bundle
from sdturbo.bundle.description import EMBEDDED

__all__ = ["EMBEDDED", "Bundle"]
