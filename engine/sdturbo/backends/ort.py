"""ONNX Runtime, CPU execution provider, fp32. The bundle's ONNX files run as they are."""

# onnxruntime ships no type information:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Tensors, check_tensors
from sdturbo.bundle import Stage
from sdturbo.errors import BackendUnavailable

PROVIDER = "CPUExecutionProvider"


def unavailable() -> str | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed; `pip install 'sdturbo[cpu]'`"
    return None


def connect(*, device: str, precision: str | None, num_threads: int | None) -> OrtBackend:
    if device != "cpu":
        raise BackendUnavailable(f"The backend 'onnxruntime' has no device {device!r} here; expected cpu.")
    if precision not in (None, "fp32"):
        raise BackendUnavailable(
            f"The backend 'onnxruntime' computes in fp32 on a CPU, not in {precision!r}; leave the precision out,"
            " or use the backend 'openvino' for bf16."
        )
    return OrtBackend(num_threads)


class OrtBackend:
    name, device, precision = "onnxruntime", "cpu", "fp32"

    def __init__(self, num_threads: int | None) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = num_threads or 0  # 0: one a physical core
        self._options.log_severity_level = 3
        self.version: str = onnxruntime.__version__

    def session(self, graph: Path, stage: Stage, batch_size: int) -> OrtSession:
        try:
            session = self._ort.InferenceSession(str(graph), self._options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendUnavailable(f"onnxruntime {self.version} refuses {graph.name}: {error}") from error
        found = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        check_tensors(graph, stage, batch_size, found)
        return OrtSession(session, stage, batch_size)


class OrtSession:
    """Inputs and outputs are bound once; a run copies into and out of the bound arrays under a lock."""

    def __init__(self, session: Any, stage: Stage, batch_size: int) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._lock = threading.Lock()
        self._binding = session.io_binding()
        self._inputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.inputs}
        self._outputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.outputs}
        # OrtValues made from numpy arrays on a CPU share their memory, and must outlive the binding
        self._values = [OrtValue.ortvalue_from_numpy(a) for a in (*self._inputs.values(), *self._outputs.values())]
        for name, value in zip((*self._inputs, *self._outputs), self._values, strict=True):
            bind = self._binding.bind_ortvalue_input if name in self._inputs else self._binding.bind_ortvalue_output
            bind(name, value)

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        with self._lock:
            for name, array in self._inputs.items():
                array[...] = inputs[name]
            self._session.run_with_iobinding(self._binding)
            return {name: array.copy() for name, array in self._outputs.items()}
