"""OpenVINO on the devices of `devices.py`. Reads the bundle's ONNX files in fp32, or in int8.

A bundle in int8 says itself which layers are computed in 8 bits. The others are in the device's fastest float. Compiled
graphs are kept in the user's cache (`cache/compiled.py`) and mapped into memory at the next load.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.checks import check_tensors, copy_inputs, graph_refusal, not_installed
from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.backends.keep import InpaintingRun
from sdturbo.backends.openvino.devices import DEVICES, Device
from sdturbo.backends.openvino.upsample import transposed_upsampling
from sdturbo.backends.openvino.weights import keep_half_weights, round_weights
from sdturbo.backends.plain_files import plain_files
from sdturbo.backends.protocols import Session, Tensors
from sdturbo.backends.telemetry import telemetry_off
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import PLAIN, Stage
from sdturbo.cache.compiled import CompiledCache, cache_key
from sdturbo.cpu import cpu_flags
from sdturbo.errors import BackendUnavailable

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

NAME = "openvino"
INT8 = "int8"
GRAPHS = ("fp32", INT8)  # precisions of the graphs that it takes
CAPABILITIES = "OPTIMIZATION_CAPABILITIES"
PREPARATION = 2  # number of our changes to a graph before its compilation, for the cache's keys

log = logging.getLogger("sdturbo")


def offers(bundle: Bundle | None) -> list[Offer]:
    if refusal := not_installed(NAME, "openvino", "openvino"):
        return refuse_all(NAME, refusal)
    with telemetry_off():
        import openvino

    core = openvino.Core()
    return [offer for device in DEVICES for offer in _offers_of(device, core, bundle)]


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> OpenVinoBackend:
    with telemetry_off():
        import openvino

    core = openvino.Core()
    device = next(device for device in DEVICES if device.name == offer.device)
    arithmetics = device.available(core.get_property(device.openvino_name, CAPABILITIES))
    hints = {arithmetic.precision: arithmetic.hint for arithmetic in arithmetics} | {INT8: arithmetics[0].hint}
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hints[offer.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if num_threads is not None and device.threads_property is not None:
        config[device.threads_property] = num_threads
    return OpenVinoBackend(core, device, config, offer.precision, openvino.__version__, bundle)


def _offers_of(device: Device, core: Core, bundle: Bundle | None) -> list[Offer]:
    floats = [arithmetic.precision for arithmetic in device.arithmetics]
    precisions = [INT8, *floats] if bundle is not None and bundle.precision == INT8 else [*floats, INT8]
    try:
        capabilities: list[str] = core.get_property(device.openvino_name, CAPABILITIES)
    except RuntimeError as error:
        refusal = BackendUnavailable(
            f"OpenVINO has no device {device.name} here ({error}). Install its driver, or use another device."
        )
        return [Offer(NAME, device.name, precision, refusal) for precision in precisions]

    def refusal_of(precision: str) -> BackendUnavailable | None:
        graphs = INT8 if precision == INT8 else "fp32"
        return graph_refusal(NAME, precision, GRAPHS, bundle, graphs=graphs) or _lack(device, precision, capabilities)

    return [Offer(NAME, device.name, precision, refusal_of(precision)) for precision in precisions]


def _lack(device: Device, precision: str, capabilities: Sequence[str]) -> BackendUnavailable | None:
    """The refusal of a precision that the device has no arithmetic for."""
    available = device.available(capabilities)
    arithmetic = {arithmetic.precision: arithmetic for arithmetic in device.arithmetics}.get(precision)
    if arithmetic is None or arithmetic in available:  # None: int8, which the graphs bring
        return None
    instead = available[0].precision
    return BackendUnavailable(
        f"{arithmetic.lacking}, so OpenVINO would compute in {instead} under the name of {precision}. Ask for precision"
        f" {instead}, or leave it out."
    )


class OpenVinoBackend:
    name, form = NAME, PLAIN

    def __init__(
        self, core: Core, device: Device, config: dict[str, Any], precision: str, version: str, bundle: Bundle | None
    ) -> None:
        self._core = core
        self._config = config
        self._bundle = bundle
        self._cache = CompiledCache(trust_unchanged=bundle.trust_unchanged) if bundle is not None else None
        self._place = device.openvino_name
        self.device, self.precision, self.version = device.name, precision, version

    def session(self, graph: Path, stage: Stage, batch_size: int) -> OpenVinoSession:
        key = self._key(graph)
        try:
            compiled, memory = (self._compile(graph), None) if key is None else self._cached(graph, key)
        except RuntimeError as error:
            raise BackendUnavailable(f"openvino {self.version} refuses {graph.name}: {error}") from error
        declared = {spec.name for spec in (*stage.inputs, *stage.outputs)}
        ports = (*compiled.inputs, *compiled.outputs)  # a port may have several names
        shapes = {min(declared & port.names, default=port.any_name): tuple(port.shape) for port in ports}
        check_tensors(graph, stage, batch_size, shapes)
        return OpenVinoSession(compiled, stage, batch_size, memory)

    def _key(self, graph: Path) -> str | None:
        """The key of the compiled graph in the cache. None for a graph outside the bundle, whose hash is unknown."""
        digest = self._bundle.graph_sha256(graph) if self._bundle is not None else None
        if digest is None:
            return None
        return cache_key(
            {
                "preparation": PREPARATION,
                "graph": digest,
                "library": self.version,
                "cpu": [self._core.get_property(self._place, "FULL_DEVICE_NAME"), cpu_flags()],
                "properties": self._config,
            }
        )

    def _cached(self, graph: Path, key: str) -> tuple[CompiledModel, NDArray[Any] | None]:
        """(Compiled graph, memory that it lies in). It is compiled into the cache first. No memory if it cannot be kept."""
        cache = self._cache
        assert cache is not None
        if (imported := self._imported(cache, graph, key)) is not None:
            return imported
        compiled = self._compile(graph)
        if not cache.put(key, compiled.export_model().getbuffer()):
            return compiled, None
        del compiled  # it holds its constants twice, where an imported one maps them
        return self._imported(cache, graph, key) or (self._compile(graph), None)

    def _imported(self, cache: CompiledCache, graph: Path, key: str) -> tuple[CompiledModel, NDArray[Any]] | None:
        import openvino

        if (blob := cache.find(key)) is None:
            return None
        try:
            memory = np.frombuffer(blob, np.uint8)
            tensor = openvino.Tensor(memory, shared_memory=True)
            return self._core.import_model(tensor, self._place, self._config), memory
        except RuntimeError as error:
            log.warning("openvino refuses the compiled %s of the cache and compiles it again: %s", graph.name, error)
            cache.drop(key)
            return None

    def _compile(self, graph: Path) -> CompiledModel:
        with plain_files(graph, f"openvino {self.version}") as file:
            model = self._core.read_model(str(file))
        transposed_upsampling(model)
        keep_half_weights(model)
        if self._config["INFERENCE_PRECISION_HINT"] == "bf16":
            round_weights(model)
        return self._core.compile_model(model, self._place, self._config)

    def program(
        self,
        sessions: Mapping[str, Session],
        rows: range,
        *,
        image_to_image: bool = False,
        inpainting: InpaintingRun | None = None,
    ) -> None:
        return None  # copies between stages cost nothing next to the stages on a CPU


class OpenVinoSession:
    """One infer request on arrays that are made once. A run copies into and out of them under a lock."""

    def __init__(self, compiled: CompiledModel, stage: Stage, batch_size: int, memory: NDArray[Any] | None) -> None:
        """memory: the compiled model reads its weights from it. It must stay mapped as long as this session lives."""
        from openvino import Tensor

        self._lock = threading.Lock()
        self._infer_request = compiled.create_infer_request()
        self._memory = memory
        self._inputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.inputs}
        self._outputs = {spec.name: np.zeros(spec.shape_at(batch_size), spec.dtype) for spec in stage.outputs}
        for name, array in (*self._inputs.items(), *self._outputs.items()):
            self._infer_request.set_tensor(name, Tensor(array, shared_memory=True))

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        with self._lock:
            copy_inputs(self._inputs, inputs)
            self._infer_request.infer()
            return {name: array.copy() for name, array in self._outputs.items()}
