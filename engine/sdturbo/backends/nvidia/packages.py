"""The TensorRT packages that are installed, by their metadata. Nothing is imported, so nothing is loaded.

NVIDIA publishes one Python module, `tensorrt`, in several packages: tensorrt-cu12 and tensorrt-cu13 with their -bindings and
-libs, and tensorrt, which requires one of them. pip installs two of them side by side, and each overwrites files of the other.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from sdturbo.errors import BackendUnavailable

_PACKAGE = re.compile(r"tensorrt(-cu\d+)?(-bindings|-libs)?")
_NEEDED = re.compile(rb"libnvinfer\.so\.(\d+)")
PROVIDER = "libonnxruntime_providers_tensorrt.so"
PROVIDER_MAJOR = 10  # of onnxruntime-gpu 1.31. Source: github.com/microsoft/onnxruntime/issues/32278


def tensorrt_packages() -> dict[str, str]:
    """Version by name of every installed package of the module `tensorrt`. Empty if TensorRT came in another way, or not."""
    named = ((re.sub(r"[-_.]+", "-", package.name).lower(), package.version) for package in distributions())
    return {name: version for name, version in sorted(named) if _PACKAGE.fullmatch(name)}


def mixed_majors(backend: str, extra: str) -> BackendUnavailable | None:
    """The refusal if TensorRT packages of different major versions are installed. extra: of sdturbo, brings the right ones."""
    packages = tensorrt_packages()
    if len({_major(version) for version in packages.values()}) < 2:
        return None
    return BackendUnavailable(
        f"The backend {backend!r} cannot run here: TensorRT packages of different major versions are installed,"
        f" {_listed(packages)}. They overwrite each other's files. Expected one major version. Remove all of them:"
        f" `pip uninstall {' '.join(packages)}`. Then, in a clone of sdturbo, `pip install '.[{extra}]'`."
    )


def provider_refusal(backend: str, extra: str) -> BackendUnavailable | None:
    """The refusal if the installed TensorRT is not of the major version that ONNX Runtime's TensorRT provider links.

    A TensorRT that no package brought, as from a tar file, is not judged: the provider loads it or says why not.
    """
    packages, expected = tensorrt_packages(), provider_major()
    wrong = {name: version for name, version in packages.items() if _major(version) != expected}
    if not wrong:
        return None
    return BackendUnavailable(
        f"The backend {backend!r} cannot run here: ONNX Runtime's TensorRT provider links libnvinfer.so.{expected}, so"
        f" TensorRT {expected} is expected, and {_listed(wrong)} is installed. `pip uninstall {' '.join(packages)}`, then in a"
        f" clone of sdturbo `pip install '.[{extra}]'`. Or use the backend 'tensorrt', which runs the installed version."
    )


def provider_major() -> int:
    """The major version of TensorRT that the installed ONNX Runtime's provider is linked with."""
    package = find_spec("onnxruntime")
    for folder in (package.submodule_search_locations or ()) if package else ():
        library = Path(folder) / "capi" / PROVIDER
        if library.is_file() and (needed := _NEEDED.search(library.read_bytes())):
            return int(needed[1])
    return PROVIDER_MAJOR


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _listed(packages: dict[str, str]) -> str:
    """The packages without those that they bring: "tensorrt-cu12 10.16.1.11 and tensorrt-cu13 11.4.0.106"."""
    whole = {name: version for name, version in packages.items() if not name.endswith(("-bindings", "-libs"))}
    return " and ".join(f"{name} {version}" for name, version in (whole or packages).items())
