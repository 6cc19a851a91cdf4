"""What this machine can run, and why not the rest."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sdturbo
from sdturbo import backends
from sdturbo.errors import BackendUnavailable

PACKAGES = (
    *("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings", "openvino"),
    *("torch", "diffusers", "transformers", "onnx"),
)
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def report() -> dict[str, Any]:
    """Machine, packages, and for each backend the precisions that run or the reason why none does."""
    return {
        "sdturbo": sdturbo.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "memory_gb": _memory_gb(),
        "nvidia_driver": shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: _backend(name) for name in backends.AUTO_ORDER},
    }


def _backend(name: str) -> dict[str, Any]:
    reason = backends.unavailable(name)
    if reason:
        return {"runs": False, "reason": reason}
    found: dict[str, Any] = {"runs": False, "precisions": {}}
    for precision in ("fp32", "fp16", "bf16", "int8"):
        try:
            backends.connect(name, precision=precision)
        except BackendUnavailable as error:
            found["precisions"][precision] = str(error)
        else:
            found["precisions"][precision] = "runs"
            found["runs"] = True
    return found


def _cpu() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = [line.partition(":") for line in text.splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = set(fields.get("flags", "").split())
    return {
        "name": fields.get("model name", platform.processor() or "unknown"),
        "count": backends.available_cpus(),
        "features": [name for name in CPU_FEATURES if name in flags],
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
