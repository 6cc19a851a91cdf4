"""Telemetry of the backends' libraries. It stays off for the process if our import of them is the first.

ONNX Runtime, from 1.29 on, writes an id of this machine and a database into the user's home, and sends events from there. It
looks once, at its import, whether ORT_DISABLE_TELEMETRY forbids that (`onnxruntime/Privacy.md`).

OpenVINO reports each import by way of the package openvino_telemetry, and takes a stub of its own where that is not installed
(`openvino/tools/ovc/telemetry_utils.py`). Its other switches are a file in the user's home and the variable CI.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()


@contextmanager
def telemetry_off() -> Generator[None]:
    """A block whose imports of onnxruntime and openvino report nothing. Afterwards the environment is as before.

    A library that the program imported earlier keeps what the program has chosen for it.
    """
    hidden = None  # in the place of a module: Python then refuses its import
    with _lock, _set(os.environ, "ORT_DISABLE_TELEMETRY", "1"), _set(sys.modules, "openvino_telemetry", hidden):
        yield


@contextmanager
def _set(mapping: MutableMapping[str, Any], name: str, value: Any) -> Generator[None]:
    earlier = {name: mapping[name]} if name in mapping else {}
    mapping[name] = value
    try:
        yield
    finally:
        del mapping[name]
        mapping.update(earlier)
