"""The NVIDIA GPUs that this process may use, asked of CUDA itself. Shared by the backends that run on them.

Uses `cuda-bindings`, CUDA's runtime API in Python. It ran on an H100. Tests hold its errors without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdturbo.backends.checks import not_installed
from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.errors import BackendUnavailable, NotOffered


@dataclass(frozen=True, slots=True)
class Gpu:
    """compute_capability: "8.9". memory: bytes in all. driver: the CUDA version that it supports, "13.0"."""

    index: int
    name: str
    compute_capability: str
    memory: int
    driver: str


# Turing: the least that CUDA 13 supports, and so do TensorRT 10 and 11.
# Sources: CUDA 13.0 release notes, "Deprecated Architectures". TensorRT 10 and 11 support matrices
LEAST_CAPABILITY = (7, 5)


class CudaError(RuntimeError):
    """A call of CUDA's runtime failed. name: CUDA's for the error, "cudaErrorNoDevice"."""

    def __init__(self, name: str, code: int) -> None:
        self.name = name
        super().__init__(f"{name} ({code})")


def libraries_missing(backend: str, library: str, extra: str, *, package: str | None = None) -> NotOffered | None:
    """The refusal of a backend whose library, or CUDA's bindings, are not installed. Arguments as of `not_installed`."""
    missing = not_installed(backend, library, extra, package=package)
    return missing or not_installed(backend, "cuda.bindings", extra, package="cuda-bindings")


def gpu_offers(
    backend: str,
    library: str,
    precisions: Sequence[str],
    refusal: Callable[[Gpu, str], BackendUnavailable | None],
) -> list[Offer]:
    """The backend's offers on every GPU. library: its name and version. refusal: that of a precision on a GPU, if any."""
    try:
        gpus = find_gpus()
    except BackendUnavailable as error:
        return refuse_all(backend, error)
    if not gpus:
        message = (
            f"The backend {backend!r} has no device cuda:0 here, this machine has none. Look at CUDA_VISIBLE_DEVICES."
        )
        return refuse_all(backend, BackendUnavailable(message))
    return [
        Offer(backend, f"cuda:{gpu.index}", precision, too_old(library, gpu) or refusal(gpu, precision))
        for gpu in gpus
        for precision in precisions
    ]


def check(result: tuple[Any, ...]) -> Any:
    """The value in the answer of a function of cuda.bindings, (error, value…). Raises CudaError."""
    error, *values = result
    if int(error):
        raise CudaError(error.name, int(error))
    return values[0] if len(values) == 1 else tuple(values)


def find_gpus() -> list[Gpu]:
    """Every GPU that CUDA shows to this process. Takes no memory on any. Raises BackendUnavailable without a fitting driver."""
    from cuda.bindings import runtime

    gpus: list[Gpu] = []
    try:
        count = check(runtime.cudaGetDeviceCount())
        driver = _version(check(runtime.cudaDriverGetVersion()))
        for index in range(count):
            properties = check(runtime.cudaGetDeviceProperties(index))
            name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
            capability = f"{properties.major}.{properties.minor}"
            gpus.append(Gpu(index, name.rstrip("\0"), capability, int(properties.totalGlobalMem), driver))
    except CudaError as error:
        raise BackendUnavailable(f"No NVIDIA GPU can be used here: {_reason(error)}") from error
    return gpus


def too_old(library: str, gpu: Gpu) -> BackendUnavailable | None:
    """The refusal of a GPU that the installed libraries have no code for."""
    if tuple(map(int, gpu.compute_capability.split("."))) >= LEAST_CAPABILITY:
        return None
    return BackendUnavailable(
        f"{library} does not support the {gpu.name}: its compute capability is {gpu.compute_capability}, expected"
        f" {'.'.join(map(str, LEAST_CAPABILITY))} or more. Use another GPU (device='cuda:1', …), or the CPU (backend"
        " 'openvino' or 'onnxruntime')."
    )


def free_memory(index: int) -> int:
    """Bytes of GPU `index` that no process has taken. Raises BackendUnavailable if it cannot be asked, as when it is full."""
    from cuda.bindings import runtime

    try:
        make_current(index)
        free, _ = check(runtime.cudaMemGetInfo())
    except CudaError as error:
        raise BackendUnavailable(f"The GPU cuda:{index} cannot be used: {error}. Look at nvidia-smi.") from error
    return int(free)


def make_current(index: int) -> None:
    """Make GPU `index` the one that this thread, and libraries in it, use. Raises CudaError."""
    from cuda.bindings import runtime

    check(runtime.cudaSetDevice(index))


def _reason(error: CudaError) -> str:
    """What stands in the way, and the remedy.

    Libraries of a newer CUDA run on a driver of the same major version. So versions that differ are no reason on their own:
    CUDA's error decides. Source: CUDA Compatibility, "Minor Version Compatibility".
    """
    from cuda.bindings import runtime

    needs = _version(check(runtime.cudaRuntimeGetVersion()))
    driver = check(runtime.cudaDriverGetVersion())
    if not driver:
        return (
            f"there is no NVIDIA driver ({error}). Install one for CUDA {needs} or newer, start a container with"
            " `--gpus all`, or use another backend."
        )
    if error.name == "cudaErrorInsufficientDriver":
        return (
            f"the driver supports CUDA {_version(driver)}, the installed libraries are of CUDA {needs} ({error}). Update the"
            " driver, or install cuda-bindings of the driver's version."
        )
    if error.name == "cudaErrorNoDevice":
        return (
            f"the driver is there, for CUDA {_version(driver)}, and shows no GPU ({error}). CUDA_VISIBLE_DEVICES may hide it:"
            f" it is {_visible()}. A container needs `--gpus all`. `nvidia-smi -L` lists what the driver sees."
        )
    return f"CUDA says {error}. Look at CUDA_VISIBLE_DEVICES and nvidia-smi."


def _visible() -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "not set" if value is None else repr(value)


def _version(number: int) -> str:
    """13020 -> "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
