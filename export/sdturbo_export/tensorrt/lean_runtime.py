"""The lean runtime, which version-compatible plans carry: looked for before the long builds.

A plan for later versions holds a copy of TensorRT's lean runtime, so that it can be loaded by itself. Without the copy
(EXCLUDE_LEAN_RUNTIME), later versions load it only beside the old runtime's library, which an upgrade removes. So the copy is
made. TensorRT's own packages do not bring the library. Source: TensorRT 10.16 and 11.1, "Version Compatibility".
That the builder finds a library that this process has loaded is unverified until a card.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sdturbo_export.errors import BuildError

PACKAGES = ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu12-libs")
FOLDER = "tensorrt_lean_libs"  # of each of them, in site-packages


def load_lean_runtime(built_with: str) -> Path | str:
    """Load the lean runtime of a version of TensorRT, for its builder opens it by its name. Returns path or name.

    It is that of a package, or one that the system's loader finds. Raises BuildError with the remedy without one.
    """
    name = f"libnvinfer_lean.so.{built_with.partition('.')[0]}"
    packaged = {package: number for package in PACKAGES if (number := _version(package))}
    other = [f"{package} {number}" for package, number in packaged.items() if number != built_with]
    if other:
        raise BuildError(_refusal(built_with, f"{' and '.join(other)} is installed, expected version {built_with}"))
    folders = spec.submodule_search_locations if (spec := find_spec(FOLDER)) else None
    found = next((Path(folder) / name for folder in folders or () if (Path(folder) / name).is_file()), name)
    try:
        ctypes.CDLL(str(found))
    except OSError as error:
        raise BuildError(_refusal(built_with, str(error))) from error
    return found


def _refusal(built_with: str, reason: str) -> str:
    return (
        f"--version-compatible needs the lean runtime of TensorRT {built_with}, which the plans carry: {reason}. `pip install"
        f" tensorrt-lean=={built_with}` brings it (tensorrt-lean-cu12 for drivers of CUDA 12), in a clone of sdturbo"
        " `pip install '.[tensorrt-lean]'` too. Or leave --version-compatible out."
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
