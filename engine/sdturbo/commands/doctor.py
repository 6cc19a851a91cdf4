"""The backends that this machine can run, and the reasons against the others."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sdturbo
from sdturbo import backends
from sdturbo.backends import PRECISIONS, BackendChoice
from sdturbo.backends.choice import first_running, fitting
from sdturbo.cpu import available_cpus, cpu_features, cpu_name, cpu_quota

PACKAGES = (
    *("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"),
    *("cuda-bindings", "openvino", "torch", "diffusers", "transformers", "onnx"),
)


def report() -> dict[str, Any]:
    """Machine and packages. Per backend, its devices with the precisions that run, or the reason why none does."""
    return {
        "sdturbo": sdturbo.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"name": cpu_name(), "count": available_cpus(), "quota": cpu_quota(), "features": cpu_features()},
        "memory_gb": _memory_gb(),
        "nvidia_driver": shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: _backend(name) for name in backends.names()},
    }


def _backend(name: str) -> dict[str, Any]:
    offers = backends.offers(name)
    runs = any(offer.runs for offer in offers)
    if offers[0].refuses_all:
        return {"runs": runs, "reason": offers[0].reason}
    devices: dict[str, dict[str, str]] = {}
    for device in dict.fromkeys(offer.device for offer in offers):
        choices = {precision: BackendChoice(name, device, precision) for precision in PRECISIONS}
        devices[device] = {
            precision: first_running(fitting(choice, offers)).reason or "runs" for precision, choice in choices.items()
        }
    return {"runs": runs, "devices": devices}


def _memory_gb() -> float | None:
    if sys.platform == "win32":  # it has no sysconf
        return None
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
