"""The engines that `make engines` builds on this machine, by its NVIDIA driver. In no package: nothing is installed yet.

    python export/machine.py     # prints cpu or tensorrt, and the reason on standard error

Standard library only. Not yet run beside a real driver: tested on the output of nvidia-smi.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

LEAST_DRIVER = 580  # CUDA 13, which the packages of the extras are for (source: CUDA 13 release notes)
LEAST_CAPABILITY = (7, 5)  # CUDA 13 and TensorRT, as in `sdturbo.backends.nvidia.gpus`
QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


def choose(ask: Callable[[], str | None]) -> tuple[str, str]:
    """("cpu" or "tensorrt", the reason). ask: gives the output of `QUERY`, None where there is no driver."""
    answer = ask()
    if answer is None:
        return "cpu", "no NVIDIA driver is installed (nvidia-smi is missing, or fails)"
    try:
        name, capability, driver = (part.strip() for part in answer.strip().splitlines()[0].split(","))
        version = tuple(int(part) for part in capability.split("."))
        major = int(driver.split(".", maxsplit=1)[0])
    except (IndexError, ValueError):
        return "cpu", f"nvidia-smi names no GPU: {answer.strip()[:200]!r}"
    if major < LEAST_DRIVER:
        return (
            "cpu",
            f"the NVIDIA driver {driver} is older than {LEAST_DRIVER}, which CUDA 13 needs. Update it for the {name}",
        )
    if version < LEAST_CAPABILITY:
        return (
            "cpu",
            f"neither CUDA 13 nor TensorRT supports the {name} (compute capability {capability}, 7.5 is the least)",
        )
    return "tensorrt", f"{name}, compute capability {capability}, driver {driver}"


def ask_driver() -> str | None:
    if shutil.which(QUERY[0]) is None:
        return None
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    engines, reason = choose(ask_driver)
    print(f"engines for {engines}: {reason}", file=sys.stderr)
    print(engines)


if __name__ == "__main__":
    main()
