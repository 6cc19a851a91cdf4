"""OpenVINO on the CPU, in fp32 or, where the CPU has bf16 instructions, in bf16. Reads the bundle's ONNX files.

A bundle in int8 says itself which layers are computed in 8 bits; the others are in bf16 or fp32, as above. What OpenVINO makes
of a graph is kept in the user's cache (`compiled_cache`) and mapped into memory at the next load.
"""

# openvino's bindings are typed in part:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Session, Tensors, check_tensors
from sdturbo.backends.openvino.upsample import transposed_upsampling
from sdturbo.backends.openvino.weights import keep_half_weights, round_weights
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import Stage
from sdturbo.cache.compiled import CompiledCache, cache_key
from sdturbo.cpu import cpu_flags
from sdturbo.errors import BackendUnavailable

PRECISIONS = ("fp32", "bf16", "int8")
FORM = 2  # of what is done to a graph before it is compiled; another number leaves what was compiled before alone

log = logging.getLogger("sdturbo")


def unavailable() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed; `pip install 'sdturbo[openvino]'`"
    return None


def connect(
    *, device: str | None, precision: str | None, num_threads: int | None, bundle: Bundle | None
) -> OpenVinoBackend:
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"The backend 'openvino' has no device {device!r} here; expected cpu.")
    if precision is not None and precision not in PRECISIONS:
        raise BackendUnavailable(f"The backend 'openvino' has no precision {precision!r}; expected fp32, bf16 or int8.")
    if bundle is not None and bundle.precision not in ("fp32", "int8"):
        raise BackendUnavailable(
            f"The backend 'openvino' takes bundles whose graphs are in fp32 or int8, not in {bundle.precision}; build one"
            " without --precision."
        )
    if bundle is not None and precision is not None and (precision == "int8") != (bundle.precision == "int8"):
        remedy = "--precision int8" if precision == "int8" else "no --precision"
        raise BackendUnavailable(
            f"This bundle's graphs are in {bundle.precision}, so the backend 'openvino' cannot compute it in {precision};"
            f" leave the precision out, or build a bundle with {remedy}."
        )
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise BackendUnavailable(
            "This CPU has no bf16 instructions (avx512_bf16 or AMX), so OpenVINO would compute in fp32 under the name"
            " of bf16. Ask for precision fp32, or leave it out."
        )
    fastest = "bf16" if has_bf16 else "fp32"
    chosen = precision or ("int8" if bundle is not None and bundle.precision == "int8" else fastest)
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if chosen == "bf16" or (chosen == "int8" and has_bf16) else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if num_threads is not None:
        config["INFERENCE_NUM_THREADS"] = num_threads
    return OpenVinoBackend(core, config, chosen, openvino.__version__, bundle)


class OpenVinoBackend:
    name, device = "openvino", "cpu"

    def __init__(self, core: Any, config: dict[str, Any], precision: str, version: str, bundle: Bundle | None) -> None:
        self._core = core
        self._config = config
        self._bundle = bundle
        self.precision = precision
        self.version = version

    def session(self, graph: Path, stage: Stage, batch_size: int) -> OpenVinoSession:
        key = self._key(graph)
        try:
            compiled, memory = (self._compile(graph), None) if key is None else self._cached(graph, key)
        except RuntimeError as error:
            raise BackendUnavailable(f"openvino {self.version} refuses {graph.name}: {error}") from error
        declared = {spec.name for spec in (*stage.inputs, *stage.outputs)}
        ports = (*compiled.inputs, *compiled.outputs)  # a port may have several names
        found = {min(declared & port.names, default=port.any_name): tuple(port.shape) for port in ports}
        check_tensors(graph, stage, batch_size, found)
        return OpenVinoSession(compiled, stage, batch_size, memory)

    def _key(self, graph: Path) -> str | None:
        """Names what this backend makes of `graph`; None if that is no graph of the bundle, so that its hash is unknown."""
        digest = self._bundle.graph_sha256(graph) if self._bundle is not None else None
        if digest is None:
            return None
        return cache_key(
            {
                "form": FORM,
                "graph": digest,
                "library": self.version,
                "cpu": [self._core.get_property("CPU", "FULL_DEVICE_NAME"), cpu_flags()],
                "properties": self._config,
            }
        )

    def _cached(self, graph: Path, key: str) -> tuple[Any, NDArray[Any] | None]:
        """(The compiled graph, the memory it lies in) from the cache, to which it is compiled if it is not there."""
        assert self._bundle is not None
        cache = CompiledCache(trust_unchanged=self._bundle.trust_unchanged)
        if (found := self._imported(cache, graph, key)) is not None:
            return found
        compiled = self._compile(graph)
        if not cache.put(key, compiled.export_model().getbuffer()):
            return compiled, None
        del compiled  # it holds its constants beside what it made of them; what is imported maps them
        return self._imported(cache, graph, key) or (self._compile(graph), None)

    def _imported(self, cache: CompiledCache, graph: Path, key: str) -> tuple[Any, NDArray[Any]] | None:
        import openvino

        if (blob := cache.find(key)) is None:
            return None
        try:
            memory = np.frombuffer(blob, np.uint8)
            tensor = openvino.Tensor(memory, shared_memory=True)
            return self._core.import_model(tensor, "CPU", self._config), memory
        except RuntimeError as error:
            log.warning("openvino refuses what it compiled of %s before, so it compiles again: %s", graph.name, error)
            cache.drop(key)
            return None

    def _compile(self, graph: Path) -> Any:
        model = self._core.read_model(str(graph))
        transposed_upsampling(model)
        keep_half_weights(model)
        if self._config["INFERENCE_PRECISION_HINT"] == "bf16":
            round_weights(model)
        return self._core.compile_model(model, "CPU", self._config)

    def program(self, sessions: Mapping[str, Session], steps: range) -> None:
        return None  # copies between stages cost nothing next to the stages on a CPU


class OpenVinoSession:
    """One infer request whose tensors are arrays made once; a run copies into and out of them under a lock."""

    def __init__(self, compiled: Any, stage: Stage, batch_size: int, memory: NDArray[Any] | None) -> None:
        """memory: what the compiled model reads its weights from; not unmapped before the request is gone."""
        from openvino import Tensor

        self._lock = threading.Lock()
        self._request = compiled.create_infer_request()
        self._memory = memory
        self._inputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.inputs}
        self._outputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.outputs}
        for name, array in (*self._inputs.items(), *self._outputs.items()):
            self._request.set_tensor(name, Tensor(array, shared_memory=True))

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        with self._lock:
            for name, array in self._inputs.items():
                array[...] = inputs[name]
            self._request.infer()
            return {name: array.copy() for name, array in self._outputs.items()}
