"""The engines that `make engines` builds on this machine, by its NVIDIA driver. In no package: nothing is installed yet.

    python export/machine.py     # prints cpu, tensorrt, tensorrt-cu12 or cuda-cu12, and the reason on standard error

Standard library only. Not yet run beside a real driver: tested on the output of nvidia-smi.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

# engines by the least driver. Each is an extra of pyproject.toml too. What is below 580 is unverified until a card.
# Sources: release notes of CUDA 13.0 (580) and 12.0 (525), "Prerequisites" of TensorRT 11 (535 with CUDA 12)
LEAST_DRIVERS = {580: "tensorrt", 535: "tensorrt-cu12", 525: "cuda-cu12"}
LEAST_CAPABILITY = (7, 5)  # CUDA 13 and TensorRT, as in `sdturbo.backends.nvidia.gpus`
QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


def choose(ask: Callable[[], str | None]) -> tuple[str, str]:
    """("cpu" or one of `LEAST_DRIVERS`, the reason). ask: gives the output of `QUERY`, None where there is no driver."""
    answer = ask()
    if answer is None:
        return "cpu", "no NVIDIA driver is installed (nvidia-smi is missing, or fails)"
    try:
        name, capability, driver = (part.strip() for part in answer.strip().splitlines()[0].split(","))
        version = tuple(int(part) for part in capability.split("."))
        major = int(driver.split(".", maxsplit=1)[0])
    except (IndexError, ValueError):
        return "cpu", f"nvidia-smi names no GPU: {answer.strip()[:200]!r}"
    engines = next((engines for least, engines in LEAST_DRIVERS.items() if major >= least), None)
    if engines is None:
        reason = f"the NVIDIA driver {driver} is older than {min(LEAST_DRIVERS)}, which CUDA 12 needs"
        return "cpu", f"{reason}. Update it for the {name}"
    if version < LEAST_CAPABILITY:
        return (
            "cpu",
            f"neither CUDA 13 nor TensorRT supports the {name} (compute capability {capability}, 7.5 is the least)",
        )
    reason = f"{name}, compute capability {capability}, driver {driver}"
    if major < max(LEAST_DRIVERS):
        reason += f", which is for CUDA 12. A driver from {max(LEAST_DRIVERS)} up is for CUDA 13"
    return engines, reason


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
