"""Memory, copies and recordings on one NVIDIA GPU: `recording.DeviceQueue` in CUDA's runtime API, without torch.

A recording is a CUDA graph. Host memory is pinned, so that copies are asynchronous and may be recorded. It ran on an H100 with
small kernels (`make gpu-smoke`). Its logic is tested on an imitation of CUDA's runtime, its names and arity against stubs.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.nvidia.gpus import CudaError, check
from sdturbo.backends.recording import Buffer, Work
from sdturbo.errors import BackendUnavailable

OUT_OF_MEMORY = (
    " The GPU is out of memory. nvidia-smi shows the processes that hold it. Free some, load with image_to_image=False, or"
    " build a bundle with fewer batch sizes."
)


_COLLECTOR = threading.Lock()


class CudaStream:
    """A stream of GPU `index`. Failures raise BackendUnavailable, and RuntimeError in `record`. One thread at a time."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._index = index
        self._make_current()
        flags = runtime.cudaStreamNonBlocking
        self._stream = self._do("make a stream", runtime.cudaStreamCreateWithFlags(flags))
        _when_gone(self, runtime.cudaStreamDestroy, self._stream)

    def handle(self) -> int:
        """The stream's address, for libraries, with its GPU made current in this thread."""
        self._make_current()
        return int(self._stream)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        size = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        memory = self.memory(size)
        kind = self._runtime.cudaHostAllocDefault
        host = self._do(f"pin {size} bytes of host memory", self._runtime.cudaHostAlloc(size, kind))
        pinned = Memory(int(host), size)
        _when_gone(pinned, self._runtime.cudaFreeHost, pinned.address)
        array: NDArray[Any] = np.asarray(pinned)[: size if shape else np.dtype(dtype).itemsize]
        array[...] = 0
        return Buffer(array.view(dtype).reshape(shape), memory)

    def memory(self, size: int) -> Memory:
        """`size` bytes on the GPU (at least one), freed with the object. CUDA aligns to 256 bytes and more."""
        self._make_current()
        size = max(1, size)
        memory = Memory(int(self._do(f"take {size} bytes", self._runtime.cudaMalloc(size))), size)
        _when_gone(memory, self._runtime.cudaFree, memory.address)
        return memory

    def upload(self, buffer: Buffer) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.device.address, buffer.host.ctypes.data, buffer.host.nbytes, kind)

    def download(self, buffer: Buffer) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(buffer.host.ctypes.data, buffer.device.address, buffer.host.nbytes, kind)

    def record(self, work: Work) -> Work:
        self._make_current()
        try:
            graph = self._capture(work)
            try:
                executable = self._do("make a CUDA graph", self._runtime.cudaGraphInstantiate(graph, 0))
            finally:
                self._runtime.cudaGraphDestroy(graph)
        except BackendUnavailable as error:
            self._runtime.cudaGetLastError()  # so that the next call does not report this error again
            raise RuntimeError(str(error)) from error

        def replay() -> None:
            self._make_current()
            self._do("replay a CUDA graph", self._runtime.cudaGraphLaunch(executable, self._stream))

        _when_gone(replay, self._runtime.cudaGraphExecDestroy, executable)
        return replay

    def synchronize(self) -> None:
        self._make_current()
        self._do("run", self._runtime.cudaStreamSynchronize(self._stream))

    def _capture(self, work: Work) -> Any:
        """A CUDA graph of all that `work` enqueues. The capture always ends, because the stream is of no use within one.

        Memory that is freed in this thread meanwhile invalidates it, so Python's search for cycles waits.
        """
        with _without_collector():
            return self._captured(work)

    def _captured(self, work: Work) -> Any:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("begin a recording", self._runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            error, *graph = self._runtime.cudaStreamEndCapture(self._stream)
            if not int(error):
                self._runtime.cudaGraphDestroy(*graph)
            raise
        return self._do("end a recording", self._runtime.cudaStreamEndCapture(self._stream))

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._make_current()
        self._do(f"copy {size} bytes", self._runtime.cudaMemcpyAsync(target, source, size, kind, self._stream))

    def _make_current(self) -> None:
        """CUDA's current device belongs to the thread, and any thread may call."""
        self._do("be used", self._runtime.cudaSetDevice(self._index))

    def _do(self, action: str, result: tuple[Any, ...]) -> Any:
        try:
            return check(result)
        except CudaError as error:
            memory = OUT_OF_MEMORY if "MemoryAllocation" in str(error) else ""
            raise BackendUnavailable(f"The GPU cuda:{self._index} failed to {action}: {error}.{memory}") from error


class Memory:
    """`size` bytes at `address`, on the GPU or on the host. NumPy takes memory of the host for an array of bytes."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.address, False), "version": 3}


class Scratch:
    """GPU memory for the intermediate tensors of engines that take turns. A run holds `lock`.

    The memory is freed with the last engine that has it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._block: weakref.ref[Memory] | None = None

    def block(self, size: int, stream: CudaStream) -> Memory:
        """At least `size` bytes: the block that is there, or a new one if it is too small. It never moves."""
        block = self._block() if self._block is not None else None
        if block is None or block.size < size:
            block = stream.memory(size)
            self._block = weakref.ref(block)
        return block


@contextmanager
def _without_collector() -> Generator[None]:
    """Python's search for cycles, of the whole process, waits. One thread at a time."""
    with _COLLECTOR:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def _when_gone(owner: object, free: Any, *arguments: Any) -> None:
    """Free something of CUDA's with its owner. At the end of the process the driver frees everything."""
    weakref.finalize(owner, free, *arguments).atexit = False
