"""CUDA on the CPU: `cuda.bindings.runtime` with memory, streams, captures and graphs, and of `cuda.bindings.driver` the one
kernel that we have."""

import ctypes
import enum
import threading
import types

import numpy as np

from sdturbo.backends.keep import keep


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalState = 401
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Mode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class Stream:
    """Work waits in `queue`; while capturing it goes to `captured`. thread: the one that captures. broken: it freed memory."""

    def __init__(self):
        self.queue, self.captured, self.thread, self.broken = [], None, None, False

    def __int__(self):
        return id(self)

    def enqueue(self, work):
        (self.queue if self.captured is None else self.captured).append(work)


class Recorded(list):
    """A graph or an executable graph."""


class Properties:
    name = b"Imitated GPU\0\0"
    major, minor = 8, 9
    totalGlobalMem = 16 << 30


class Cuda(types.ModuleType):
    """`cuda.bindings.runtime`. Functions return (error, values…).

    things: what was made and not freed yet. fail: function's name -> (error, calls that still work).
    """

    cudaMemcpyKind, cudaStreamCaptureMode = Kind, Mode
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self, gpus=2, driver=13000):
        super().__init__("cuda.bindings.runtime")
        self.gpus, self.driver, self.free = gpus, driver, 12 << 30
        self.things, self.calls, self.fail, self.current = {}, [], {}, 0
        for name in vars(Cuda):
            if isinstance(vars(Cuda)[name], types.FunctionType) and name.startswith("cuda"):
                setattr(self, name, self._returning_errors(name, getattr(self, name)))

    def _returning_errors(self, name, function):
        def call(*arguments):
            self.calls.append(name)
            error, working = self.fail.get(name, (None, 0))
            if error is not None and self.calls.count(name) > working:
                return (error, None)
            found = function(*arguments)
            if isinstance(found, Error):
                return (found, None)
            return (Error.cudaSuccess, *(found if type(found) is tuple else () if found is None else (found,)))

        return call

    def _keep(self, thing, key=None):
        self.things[id(thing) if key is None else key] = thing
        return thing

    def _take(self, size):
        assert size > 0
        block = ctypes.create_string_buffer(size)
        self._keep(block, ctypes.addressof(block))
        return ctypes.addressof(block)

    def cudaGetDeviceCount(self):
        return self.gpus

    def cudaDriverGetVersion(self):
        return self.driver

    def cudaRuntimeGetVersion(self):
        return 13000

    def cudaSetDevice(self, index):
        assert 0 <= index < self.gpus
        self.current = index

    def cudaGetDeviceProperties(self, index):
        return Properties()

    def cudaMemGetInfo(self):
        return self.free, 16 << 30

    def cudaGetLastError(self):
        pass

    def cudaMalloc(self, size):
        return self._take(size)

    def cudaHostAlloc(self, size, flags):
        return self._take(size)

    def cudaFree(self, address):
        for thing in self.things.values():
            if isinstance(thing, Stream) and thing.captured is not None and thing.thread == threading.get_ident():
                thing.broken = True
        del self.things[address]

    def cudaFreeHost(self, address):
        del self.things[address]

    def cudaStreamCreateWithFlags(self, flags):
        return self._keep(Stream())

    def cudaStreamDestroy(self, stream):
        del self.things[id(stream)]

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert size <= min(len(self.things[target]), len(self.things[source]))
        stream.enqueue(lambda: ctypes.memmove(target, source, size))

    def cudaStreamSynchronize(self, stream):
        assert stream.captured is None, "synchronised within a capture"
        while stream.queue:
            stream.queue.pop(0)()

    def cudaStreamBeginCapture(self, stream, mode):
        assert stream.captured is None, "a capture was not ended"
        stream.captured, stream.thread, stream.broken = Recorded(), threading.get_ident(), False

    def cudaStreamEndCapture(self, stream):
        captured, stream.captured = stream.captured, None
        if stream.broken:
            return Error.cudaErrorStreamCaptureInvalidated
        return self._keep(captured)

    def cudaGraphInstantiate(self, graph, flags):
        return self._keep(Recorded(graph))

    def cudaGraphLaunch(self, executable, stream):
        for work in self.things[id(executable)]:
            stream.enqueue(work)

    def cudaGraphDestroy(self, graph):
        del self.things[id(graph)]

    def cudaGraphExecDestroy(self, executable):
        del self.things[id(executable)]


class Driver(types.ModuleType):
    """`cuda.bindings.driver`, for the kernel of inpainting. Its text is not run: the same arithmetic is, in NumPy.

    fail: function's name -> error.
    """

    def __init__(self, runtime):
        super().__init__("cuda.bindings.driver")
        self.runtime, self.fail = runtime, {}

    def cuModuleLoadData(self, image):
        if "cuModuleLoadData" in self.fail:
            return (self.fail["cuModuleLoadData"], None)
        assert b".visible .entry keep(" in image
        assert image.endswith(b"\0"), "the driver reads it to its end"
        return Error.cudaSuccess, self.runtime._keep(Recorded([image]))

    def cuModuleGetFunction(self, module, name):
        return Error.cudaSuccess, (module, name)

    def cuModuleUnload(self, module):
        del self.runtime.things[id(module)]
        return (Error.cudaSuccess,)

    def cuLaunchKernel(self, function, *grid_block_shared_stream):
        *sizes, shared, stream, (values, kinds), extra = grid_block_shared_stream
        if "cuLaunchKernel" in self.fail:
            return (self.fail["cuLaunchKernel"],)
        assert (function[1], shared, extra) == (b"keep", 0, 0)
        assert kinds == (*[ctypes.c_void_p] * 6, ctypes.c_int)
        *addresses, count = values
        assert sizes[0] * sizes[3] >= count > (sizes[0] - 1) * sizes[3]

        def array(address, size):
            return np.frombuffer(self.runtime.things[address], np.float32, size)

        def work():
            *latents, sigma, kept = addresses
            array(kept, count)[...] = keep(*(array(address, count) for address in latents), array(sigma, 1)[0])

        self.runtime.things[stream].enqueue(work)
        return (Error.cudaSuccess,)
