"""TensorRT on the CPU: a plan is the name of its ONNX file, which ONNX Runtime runs."""

import enum
import json
import types

import numpy as np
import onnxruntime

NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


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
    _engine = property(lambda self: Engine)

    def __init__(self, logger):
        self.logger = logger
        self.trt.loggers.add(logger)

    def deserialize_cuda_engine(self, data):
        self.trt.deserialised = data
        self.trt.used_gpus.add(self.trt.cuda.current)
        return (
            None
            if self.trt.refuse(self.logger, "deserialize")
            else self._engine(self.trt, self.logger, json.loads(bytes(data)))
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
