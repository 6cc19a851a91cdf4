"""ONNX Runtime, CPU execution provider. The bundle's ONNX files run as they are, in fp32, int8 or fp16.

fp16 is for comparison: a CPU computes such graphs in float32 between casts, more slowly and with fewer roundings.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.checks import by_graph, check_tensors, copy_inputs, graph_refusal, not_installed
from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.backends.keep import InpaintingRun
from sdturbo.backends.plain_files import plain_files
from sdturbo.backends.protocols import Session, Tensors
from sdturbo.backends.telemetry import telemetry_off
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import PLAIN, Stage
from sdturbo.errors import BackendUnavailable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
PRECISIONS = ("fp32", "fp16", "int8")


def offers(bundle: Bundle | None) -> list[Offer]:
    if refusal := not_installed(NAME, "onnxruntime", "cpu"):
        return refuse_all(NAME, refusal)
    with telemetry_off():
        importlib.import_module("onnxruntime")  # a broken installation raises here
    return [
        Offer(NAME, "cpu", precision, graph_refusal(NAME, precision, PRECISIONS, bundle))
        for precision in by_graph(PRECISIONS, bundle)
    ]


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> OrtBackend:
    return OrtBackend(num_threads, offer.precision)


def readable(graph: Path, version: str) -> AbstractContextManager[Path]:
    """The ONNX file as onnxruntime of that version reads it.

    From 1.24 to 1.31 it reads weights in the graph's directory alone, where every file of huggingface_hub's cache is a link.
    Source: github.com/microsoft/onnxruntime, issue 27353.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2])
    return plain_files(graph, f"onnxruntime {version}") if (1, 24) <= numbers < (1, 32) else nullcontext(graph)


class OrtBackend:
    name, device, form = NAME, "cpu", PLAIN

    def __init__(self, num_threads: int | None, precision: str) -> None:
        with telemetry_off():
            import onnxruntime

        self.precision = precision
        self._ort = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = num_threads or 0  # 0: one per physical core
        self._options.log_severity_level = 3
        self.version: str = onnxruntime.__version__

    def session(self, graph: Path, stage: Stage, batch_size: int) -> OrtSession:
        try:
            with readable(graph, self.version) as file:
                compiled = self._ort.InferenceSession(str(file), self._options, providers=[PROVIDER])
        except BackendUnavailable:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendUnavailable(f"onnxruntime {self.version} refuses {graph.name}: {error}") from error
        shapes = {value.name: value.shape for value in (*compiled.get_inputs(), *compiled.get_outputs())}
        check_tensors(graph, stage, batch_size, shapes)
        return OrtSession(compiled, stage, batch_size)

    def program(
        self,
        sessions: Mapping[str, Session],
        rows: range,
        *,
        image_to_image: bool = False,
        inpainting: InpaintingRun | None = None,
    ) -> None:
        return None  # copies between stages cost nothing next to the stages on a CPU


class OrtSession:
    """Inputs and outputs are bound once. A run copies into and out of the bound arrays under a lock."""

    def __init__(self, compiled: InferenceSession, stage: Stage, batch_size: int) -> None:
        from onnxruntime import OrtValue

        self._compiled = compiled
        self._lock = threading.Lock()
        self._binding = compiled.io_binding()
        self._inputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.inputs}
        self._outputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.outputs}
        # OrtValues made from numpy arrays on a CPU share their memory, and must outlive the binding
        self._values = [OrtValue.ortvalue_from_numpy(a) for a in (*self._inputs.values(), *self._outputs.values())]
        for name, value in zip((*self._inputs, *self._outputs), self._values, strict=True):
            bind = self._binding.bind_ortvalue_input if name in self._inputs else self._binding.bind_ortvalue_output
            bind(name, value)

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        with self._lock:
            copy_inputs(self._inputs, inputs)
            self._compiled.run_with_iobinding(self._binding)
            return {name: array.copy() for name, array in self._outputs.items()}
