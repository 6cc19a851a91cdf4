"""Three small kernels in the place of engines: `device.Engine` on an NVIDIA GPU with no library but NVRTC, CUDA's compiler.

Each stage's arithmetic stands here twice, in CUDA and in NumPy. Both round after every operation, so that they agree bit for
bit. A kernel takes the addresses of the stage's tensors, inputs first, then their sizes in elements.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.nvidia.gpus import CudaError, check
from sdturbo.backends.nvidia.stream import CudaStream
from sdturbo.backends.recording import Buffer, Work
from sdturbo.bundle.description import Stage
from sdturbo.errors import BackendUnavailable

# __fmul_rn and __fadd_rn keep the compiler from joining a product and a sum, which would round once instead of twice
SOURCE = rb"""
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)
typedef long long int64;

extern "C" __global__ void text_encoder(const int64* ids, float* embeds, int n_ids, int n) {
    int i = INDEX;
    if (i < n) embeds[i] = __fmul_rn(0.001f, (float)ids[i / (n / n_ids)]);
}

extern "C" __global__ void denoiser(const float* x, const float* embeds, const int64* step, float* next,
                                    int n_x, int n_embeds, int n_step, int n) {
    int i = INDEX;
    if (i < n) next[i] = __fadd_rn(__fadd_rn(__fmul_rn(0.5f, x[i]), __fmul_rn(0.25f, embeds[i % n_embeds])), (float)*step);
}

extern "C" __global__ void decoder(const float* x, unsigned char* image, int n_x, int n) {
    int i = INDEX;
    if (i < n) image[i] = (unsigned char)((int)fabsf(__fmul_rn(16.0f, x[i % n_x])) & 255);
}
"""
THREADS = 256  # of a block


def text_encoder(ids: NDArray[Any], count: int) -> NDArray[Any]:
    return np.repeat(np.float32(0.001) * ids.ravel().astype(np.float32), count // ids.size)


def denoiser(latents: NDArray[Any], embeds: NDArray[Any], step: NDArray[Any], count: int) -> NDArray[Any]:
    scaled = np.float32(0.5) * np.resize(latents, count)
    return scaled + np.float32(0.25) * np.resize(embeds, count) + np.float32(step.item())


def decoder(latents: NDArray[Any], count: int) -> NDArray[Any]:
    return (np.abs(np.float32(16) * np.resize(latents, count)).astype(np.int32) & 255).astype(np.uint8)


# stage -> its inputs and the number of elements of its output, to that output, flat
ARITHMETIC: dict[str, Callable[..., NDArray[Any]]] = {
    "text_encoder": text_encoder,
    "denoiser": denoiser,
    "decoder": decoder,
}


class Kernels(Protocol):
    def launch(self, name: str, buffers: Sequence[Buffer], stream: CudaStream) -> None:
        """Enqueue the kernel of the stage `name` on its inputs and output."""
        ...

    def wait(self, stream: CudaStream) -> None:
        """Wait for a stream. CUDA forbids it while the stream is recorded: raises BackendUnavailable."""
        ...


class KernelEngine:
    """A stage of `device.Engine` that is one kernel. waits: it also waits for the stream, so that no recording succeeds."""

    recordable = True

    def __init__(self, stage: Stage, kernels: Kernels, *, waits: bool = False) -> None:
        self.lock = threading.Lock()
        self._name, self._kernels, self._waits = stage.name, kernels, waits
        self._tensors = [spec.name for spec in (*stage.inputs, *stage.outputs)]

    def bind(self, buffers: Mapping[str, Buffer], stream: CudaStream) -> Work:
        ordered = [buffers[name] for name in self._tensors]

        def launch() -> None:
            if self._waits:
                self._kernels.wait(stream)
            self._kernels.launch(self._name, ordered, stream)

        return launch


class CudaKernels:
    """The kernels on GPU 0. Raises BackendUnavailable if they cannot be compiled or loaded."""

    def __init__(self, capability: str) -> None:
        from cuda.bindings import driver, runtime

        self._driver = driver
        image = compiled(capability)
        try:
            check(runtime.cudaSetDevice(0))
            check(runtime.cudaFree(0))  # makes the context that the driver's functions need
            self._module = check(driver.cuModuleLoadData(image))
            self._functions = {
                name: check(driver.cuModuleGetFunction(self._module, name.encode())) for name in ARITHMETIC
            }
        except CudaError as error:
            raise BackendUnavailable(
                f"The GPU cuda:0 does not load the kernels: {error}. Look at nvidia-smi."
            ) from error

    def launch(self, name: str, buffers: Sequence[Buffer], stream: CudaStream) -> None:
        sizes = [int(buffer.host.size) for buffer in buffers]
        values = (*(int(buffer.device.address) for buffer in buffers), *sizes)
        types = (*[ctypes.c_void_p] * len(sizes), *[ctypes.c_int] * len(sizes))
        blocks = -(-sizes[-1] // THREADS)
        grid, block = (blocks, 1, 1), (THREADS, 1, 1)
        launched = self._driver.cuLaunchKernel(
            self._functions[name], *grid, *block, 0, stream.handle(), (values, types), 0
        )
        try:
            check(launched)
        except CudaError as error:
            raise BackendUnavailable(f"The GPU cuda:0 failed to launch {name}: {error}.") from error

    def wait(self, stream: CudaStream) -> None:
        stream.synchronize()


class ImitatedKernels:
    """The same arithmetic on `tests/imitation`. runtime: its `Cuda`, whose streams take Python functions."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def launch(self, name: str, buffers: Sequence[Buffer], stream: CudaStream) -> None:
        def work() -> None:
            *inputs, output = (
                np.frombuffer(self._runtime.things[buffer.device.address], buffer.host.dtype, buffer.host.size)
                for buffer in buffers
            )
            output[...] = ARITHMETIC[name](*inputs, output.size)

        self._runtime.things[stream.handle()].enqueue(work)

    def wait(self, stream: CudaStream) -> None:
        if self._runtime.things[stream.handle()].captured is not None:
            raise BackendUnavailable("An imitated stream cannot be waited for while it is recorded.")
        stream.synchronize()


def compiled(capability: str) -> bytes:
    """The kernels as machine code for a compute capability, "8.9". Needs no GPU. Raises BackendUnavailable."""
    from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] (no stub of the compiler)

    try:
        program = check(nvrtc.nvrtcCreateProgram(SOURCE, b"smoke.cu", 0, [], []))
        options = [f"--gpu-architecture=sm_{capability.replace('.', '')}".encode()]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(check(nvrtc.nvrtcGetProgramLogSize(program)))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        if int(error):
            words = log.rstrip(b"\0").decode().strip()
            raise BackendUnavailable(
                f"NVRTC refuses the kernels for compute capability {capability}: {error.name}. {words}"
            )
        image = bytearray(check(nvrtc.nvrtcGetCUBINSize(program)))
        check(nvrtc.nvrtcGetCUBIN(program, image))
        check(nvrtc.nvrtcDestroyProgram(program))
    except RuntimeError as error:  # CudaError, and what cuda-bindings raises where the library is missing
        raise BackendUnavailable(
            f"NVRTC, CUDA's compiler, does not work here: {str(error).strip()}. `pip install '.[cuda]'` brings it."
        ) from error
    return bytes(image)
