"""The CPUs of this process: number, name and instruction sets. Standard library only."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

# the instruction sets that decide how fast we are
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def available_cpus() -> int:
    """CPUs this process may use."""
    if sys.platform == "linux":  # elsewhere there is no such call
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    return proc_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown"


def cpu_flags() -> str:
    """Instruction sets of this CPU as Linux lists them. Empty elsewhere."""
    return proc_field("/proc/cpuinfo", "flags", "Features")


def cpu_features() -> list[str]:
    """Those of `FEATURES` that this CPU has."""
    flags = set(cpu_flags().split())
    return [name for name in FEATURES if name in flags]


def proc_field(path: str, *names: str) -> str:
    """The first field of one of these names in a file of Linux's /proc. Empty without one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    fields = ((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    return next((value for key, value in fields if key in names), "")
