"""OpenVINO on the CPU, in fp32 or, where the CPU has bf16 instructions, in bf16. Reads the bundle's ONNX files."""

# openvino's bindings are typed in part:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Session, Tensors, check_tensors
from sdturbo.backends.openvino_upsample import transposed_upsampling
from sdturbo.bundle import Bundle, Stage
from sdturbo.errors import BackendUnavailable

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


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
        raise BackendUnavailable(f"The backend 'openvino' has no precision {precision!r}; expected fp32 or bf16.")
    if bundle is not None and bundle.precision != "fp32":
        raise BackendUnavailable(
            f"The backend 'openvino' takes bundles whose graphs are in fp32, not in {bundle.precision}; build one without"
            " --precision."
        )
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise BackendUnavailable(
            "This CPU has no bf16 instructions (avx512_bf16 or AMX), so OpenVINO would compute in fp32 under the name"
            " of bf16. Ask for precision fp32, or leave it out."
        )
    chosen = precision or ("bf16" if has_bf16 else "fp32")
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[chosen],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if num_threads is not None:
        config["INFERENCE_NUM_THREADS"] = num_threads
    return OpenVinoBackend(core, config, chosen, openvino.__version__)


class OpenVinoBackend:
    name, device = "openvino", "cpu"

    def __init__(self, core: Any, config: dict[str, Any], precision: str, version: str) -> None:
        self._core = core
        self._config = config
        self.precision = precision
        self.version = version

    def session(self, graph: Path, stage: Stage, batch_size: int) -> OpenVinoSession:
        try:
            model = self._core.read_model(str(graph))
            transposed_upsampling(model)
            compiled = self._core.compile_model(model, "CPU", self._config)
        except RuntimeError as error:
            raise BackendUnavailable(f"openvino {self.version} refuses {graph.name}: {error}") from error
        declared = {spec.name for spec in (*stage.inputs, *stage.outputs)}
        ports = (*compiled.inputs, *compiled.outputs)  # a port may have several names
        found = {min(declared & port.names, default=port.any_name): tuple(port.shape) for port in ports}
        check_tensors(graph, stage, batch_size, found)
        return OpenVinoSession(compiled, stage, batch_size)

    def program(self, sessions: Mapping[str, Session], steps: range) -> None:
        return None  # copies between stages cost nothing next to the stages on a CPU


class OpenVinoSession:
    """One infer request whose tensors are arrays made once; a run copies into and out of them under a lock."""

    def __init__(self, compiled: Any, stage: Stage, batch_size: int) -> None:
        from openvino import Tensor

        self._lock = threading.Lock()
        self._request = compiled.create_infer_request()
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
