"""The kernels that TensorRT for RTX compiles when a card loads a plan, kept in the user's cache for the next load.

The library calls them its runtime cache. It checks a cache against version, GPU and driver before it reads it. Before that,
`cache/compiled.py` checks the hash. Has not run on a card: tested on an imitation.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from sdturbo.backends.nvidia.gpus import Gpu
from sdturbo.backends.nvidia.library import Library
from sdturbo.cache.compiled import CompiledCache, cache_key

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

log = logging.getLogger("sdturbo")


class KernelCache:
    """The kernels of one plan on one GPU. used: whether the library took those of an earlier load."""

    def __init__(self, library: Library, gpu: Gpu, plan_sha256: str, *, trust_unchanged: bool) -> None:
        """trust_unchanged: as of `CompiledCache`."""
        self.used = False
        self._module = library.module
        self._cache = CompiledCache(trust_unchanged=trust_unchanged)
        machine = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}
        self._key = cache_key({"library": [library.name, library.version], "plan": plan_sha256, **machine})
        self._kernels: tensorrt_rtx.IRuntimeCache | None = None

    def context(
        self, engine: tensorrt.ICudaEngine, strategy: tensorrt.ExecutionContextAllocationStrategy
    ) -> tensorrt.IExecutionContext | None:
        """An execution context that takes its kernels from the cache, and puts new ones there. None as the library's own."""
        rtx_engine = cast("tensorrt_rtx.ICudaEngine", engine)
        config = rtx_engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kernels = config.create_runtime_cache()
        blob = self._cache.find(self._key)
        if blob is not None:
            self.used = kernels.deserialize(memoryview(blob))
            if not self.used:
                log.info("kernels of an earlier load are not used: %s refuses them, and compiles anew", self._module)
                self._cache.drop(self._key)
        if config.set_runtime_cache(kernels):
            self._kernels = kernels
        return rtx_engine.create_execution_context(config)

    def keep(self) -> None:
        """Put the kernels into the user's cache, unless they come from there. Call it after the first run.

        The library compiles with the context or with the first run, its documentation does not say which.
        """
        if self._kernels is None or self.used:
            return
        with memoryview(self._kernels.serialize()) as blob:
            if blob.nbytes:
                self._cache.put(self._key, blob)
