"""TensorRT for RTX on the CPU: TensorRT's imitation with compute capabilities in its plans and kernels that are compiled when a
plan is loaded."""

import enum
import json

from imitation import tensorrt


class Rtx(tensorrt.Trt):
    """`tensorrt_rtx`. compiled: the graph of every plan whose kernels were compiled, and not taken from a runtime cache."""

    class ComputeCapability(enum.IntEnum):
        NONE, CURRENT, SM75, SM86, SM89, SM120 = 0, 1, 75, 86, 89, 120

    def __init__(self, cuda, version="1.7.1.116"):
        super().__init__(cuda, version)
        self.__name__ = "tensorrt_rtx"
        self.compiled = []
        for name, kind in (("Runtime", Runtime), ("Builder", Builder)):
            setattr(self, name, type(name, (kind,), {"trt": self}))


class Builder(tensorrt.Builder):
    def create_builder_config(self):
        config = Config()
        self.trt.configs.append(config)
        return config

    def build_serialized_network(self, network, config):
        plan = super().build_serialized_network(network, config)
        names = [capability.name for capability in config.capabilities]
        return None if plan is None else json.dumps({**json.loads(plan), "capabilities": names}).encode()


class Config(tensorrt.Config):
    """num_compute_capabilities is set before the capabilities. There are no timings, and asking for them needs a GPU."""

    def __init__(self):
        super().__init__()
        self.capabilities, self.num_compute_capabilities = [], 0

    def set_compute_capability(self, compute_capability, index):
        self.capabilities.append(compute_capability)
        return index < self.num_compute_capabilities

    def create_timing_cache(self, data):
        raise AssertionError("a timing cache needs a GPU")


class Runtime(tensorrt.Runtime):
    _engine = property(lambda self: Engine)


class Engine(tensorrt.Engine):
    def create_runtime_config(self):
        return RuntimeConfig(self.trt)

    def create_execution_context(self, runtime_config):
        cache, graph = runtime_config.cache, self.plan["graph"]
        if cache is None or graph not in cache.kernels:
            self.trt.compiled.append(graph)
        if cache is not None:
            cache.kernels.add(graph)
        return super().create_execution_context(runtime_config.strategy)


class RuntimeConfig:
    def __init__(self, trt):
        self.trt, self.cache, self.strategy = trt, None, None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return self.trt.refuses != "set"


class RuntimeCache:
    def __init__(self, trt):
        self.trt, self.kernels = trt, set()

    def deserialize(self, blob):
        if self.trt.refuses == "kernels":
            return False
        self.kernels = set(json.loads(bytes(blob)))
        return True

    def serialize(self):
        return json.dumps(sorted(self.kernels)).encode()
