"""CUDA's runtime and TensorRT imitated on the CPU, so that all of our code around them runs: device memory is memory of its
own, work waits in streams until they are synchronised, captures record it, a plan runs its ONNX file in ONNX Runtime.

What is imitated is how our code uses the libraries, not the libraries: `test_api.py` holds every name against the real ones.
"""

import ctypes
import enum
import json
import sys
import threading
import types

import numpy as np
import onnxruntime

NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


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


class Trt(types.ModuleType):
    """`tensorrt`. says: what the logger is told as an error when something is refused."""

    class BuilderFlag(enum.IntEnum):
        TF32 = 7
        VERSION_COMPATIBLE = 13

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class MemoryPoolType(enum.IntEnum):
        WORKSPACE = 0

    class ProfilingVerbosity(enum.IntEnum):
        DETAILED = 2

    class HardwareCompatibilityLevel(enum.IntEnum):
        NONE = 0
        AMPERE_PLUS = 1
        SAME_COMPUTE_CAPABILITY = 2

    class LayerInformationFormat(enum.IntEnum):
        JSON = 1

    class ExecutionContextAllocationStrategy(enum.IntEnum):
        USER_MANAGED = 2

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class IProgressMonitor:
        pass

    def __init__(self, cuda, version="10.16.1.11"):
        super().__init__("tensorrt")
        self.__version__, self.cuda = version, cuda
        self.refuses, self.configs, self.distort = None, [], 0.0
        self.loggers = set()  # the real library would keep the first alone
        self.used_gpus = set()  # by building and loading
        self.scratch, self.busy = [], set()  # (graph, address, size) of each context; addresses in use at this moment
        for name, kind in (("Runtime", Runtime), ("Builder", Builder), ("OnnxParser", OnnxParser)):
            setattr(self, name, type(name, (kind,), {"trt": self}))

    @staticmethod
    def nptype(dtype):
        return dtype

    def refuse(self, logger, what):
        """Whether `what` is to fail; then the logger is told."""
        if self.refuses == what:
            logger.log(self.ILogger.Severity.ERROR, f"[{what}] out of memory")
        return self.refuses == what


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger):
        self.logger = logger
        self.trt.loggers.add(logger)

    def deserialize_cuda_engine(self, data):
        self.trt.deserialised = data
        self.trt.used_gpus.add(self.trt.cuda.current)
        return (
            None
            if self.trt.refuse(self.logger, "deserialize")
            else Engine(self.trt, self.logger, json.loads(bytes(data)))
        )


class Engine:
    def __init__(self, trt, logger, plan):
        self.trt, self.logger, self.plan = trt, logger, plan
        self.session = onnxruntime.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.tensors = self.inputs | {value.name: value for value in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_shape(self, name):
        return self.tensors[name].shape

    def get_tensor_dtype(self, name):
        return NUMPY[self.tensors[name].type]

    @property
    def device_memory_size_v2(self):
        return 1000 * max(value.shape[0] for value in self.tensors.values() if value.shape)  # by the batch size

    def create_execution_context(self, strategy):
        assert strategy == Trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return None if self.trt.refuse(self.logger, "context") else Context(self)

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, format):
        return json.dumps({"Layers": [self.plan["graph"]]})


class Context:
    def __init__(self, engine):
        self.engine, self.addresses, self.scratch = engine, {}, None

    def set_device_memory(self, memory, size):
        assert self.engine.device_memory_size_v2 <= size <= len(self.engine.trt.cuda.things[memory])
        self.scratch = memory
        self.engine.trt.scratch.append((self.engine.plan["graph"], memory, size))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in self.engine.tensors

    def execute_async_v3(self, handle):
        engine, addresses = self.engine, dict(self.addresses)
        if engine.trt.refuse(engine.logger, "enqueue"):
            return False

        def run():
            trt = engine.trt
            assert self.scratch in trt.cuda.things, "runs without memory"
            assert self.scratch not in trt.busy, "its memory is used by another context"
            trt.busy.add(self.scratch)
            try:
                compute()
            finally:
                trt.busy.discard(self.scratch)

        def compute():
            arrays = {name: self.array(name, address) for name, address in addresses.items()}
            inputs = {name: array.copy() for name, array in arrays.items() if name in engine.inputs}
            outputs = [name for name in arrays if name not in engine.inputs]
            for name, value in zip(outputs, engine.session.run(outputs, inputs), strict=True):
                arrays[name][...] = value if value.dtype == np.uint8 else value * (1 + engine.plan["distort"])

        engine.trt.cuda.things[handle].enqueue(run)
        return True

    def array(self, name, address):
        """Device memory as an array of the tensor's shape."""
        value = self.engine.tensors[name]
        block = self.engine.trt.cuda.things[address]
        dtype = np.dtype(NUMPY[value.type])
        return np.frombuffer(block, dtype, int(np.prod(value.shape, dtype=int))).reshape(value.shape)


class Builder:
    def __init__(self, logger):
        self.logger = logger
        self.trt.loggers.add(logger)

    def create_network(self, flags):
        assert flags == 2, "only strongly typed networks are the same in TensorRT 10 and 11"
        return {}

    def create_builder_config(self):
        config = Config()
        self.trt.configs.append(config)
        return config

    def build_serialized_network(self, network, config):
        self.trt.used_gpus.add(self.trt.cuda.current)
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            monitor.phase_start("Timing", "Building Engine", 4)
            for i in range(4):
                if not monitor.step_complete("Timing", i):
                    return None
            monitor.phase_finish("Timing")
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        config.timings += b"+"
        if self.trt.refuse(self.logger, "build"):
            return None
        return json.dumps({**network, "distort": self.trt.distort, "build": len(self.trt.configs)}).encode()


class Config:
    def __init__(self):
        self.flags, self.limits, self.timings = {Trt.BuilderFlag.TF32}, {}, b""

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def create_timing_cache(self, data):
        self.timings = data
        return self

    def set_timing_cache(self, cache, ignore_mismatch):
        return cache.timings != b"of another GPU"

    def get_timing_cache(self):
        return self

    def serialize(self):
        return self.timings


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.num_errors = network, 0

    def parse_from_file(self, path):
        self.network["graph"] = path
        self.num_errors = int(self.trt.refuses == "parse")
        return not self.num_errors

    def get_error(self, index):
        return self

    def desc(self):
        return "no importer for operator Fancy"

    def node_name(self):
        return "fancy_1"

    def node_operator(self):
        return "Fancy"


def install(monkeypatch, **options):
    """Put the imitations in the place of the libraries; returns (cuda, tensorrt)."""
    cuda = Cuda(**options)
    trt = Trt(cuda)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.runtime, package.bindings = cuda, bindings
    for module in (package, bindings, cuda, trt):
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return cuda, trt
