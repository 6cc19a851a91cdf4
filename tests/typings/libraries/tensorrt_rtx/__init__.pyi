"""What TensorRT for RTX has and TensorRT has not, as our code uses it. The other names are those of `tensorrt`."""

import tensorrt

__version__: str

class ComputeCapability:
    __members__: dict[str, ComputeCapability]

class IBuilderConfig:
    num_compute_capabilities: int
    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool: ...

class IRuntimeCache:
    def deserialize(self, blob: memoryview | bytes) -> bool: ...
    def serialize(self) -> tensorrt.IHostMemory: ...

class IRuntimeConfig:
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...
    def set_execution_context_allocation_strategy(
        self, strategy: tensorrt.ExecutionContextAllocationStrategy
    ) -> None: ...

class ICudaEngine:
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, runtime_config: IRuntimeConfig) -> tensorrt.IExecutionContext | None: ...
