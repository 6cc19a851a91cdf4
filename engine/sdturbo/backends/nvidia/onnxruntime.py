"""ONNX Runtime on an NVIDIA GPU, with its CUDA or its TensorRT provider. The bundle's ONNX files run as they are.

In fp16 the CUDA provider takes the graphs of a form of its own, whose operators have fused kernels.
Tensors are bound once to device memory that all stages share. Each stage replays a CUDA graph of its own. ONNX Runtime
replaces a provider that does not load. Here that is an error, and so is a product that it leaves to the CPU.
The CUDA provider ran on an H100 (benchmarks/results/gpu). The TensorRT provider has not run on a GPU. The logic is tested on
device "cpu", the refusals with onnxruntime-gpu on a machine without GPU.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdturbo.backends.checks import by_graph, check_tensors, graph_refusal
from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.backends.device import DeviceProgram, DeviceSession, Keeping, device_index
from sdturbo.backends.keep import KEEP, InpaintingRun
from sdturbo.backends.nvidia.gpus import free_memory, gpu_offers, libraries_missing
from sdturbo.backends.nvidia.keep_graph import keep_graph
from sdturbo.backends.ort import readable
from sdturbo.backends.protocols import Program
from sdturbo.backends.recording import Buffer, Work
from sdturbo.backends.telemetry import telemetry_off
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import ONNXRUNTIME_CUDA, PLAIN, Size, Stage
from sdturbo.errors import BackendUnavailable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger("sdturbo")

NAME = "cuda"
PRECISIONS = ("fp16", "fp32")
CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
PRODUCTS = {"Conv", "MatMul", "Gemm", "Softmax", "MultiHeadAttention"}  # never left to the CPU
MEMORY_SHARE = 0.9  # of the memory that is free at load. It caps the arena


def offers(bundle: Bundle | None) -> list[Offer]:
    return provider_offers(NAME, CUDA, bundle)


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None, provider: str = CUDA) -> OrtGpuBackend:
    """The offered backend. Raises BackendUnavailable if its GPU is full."""
    with telemetry_off():
        import onnxruntime

    onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries, from their Python packages
    index = device_index(offer.device)
    form = form_for(provider, bundle)
    options = provider_options(provider, index, int(free_memory(index) * MEMORY_SHARE), offer.precision, form)
    return OrtGpuBackend(offer.backend, [(provider, options)], "cuda", index, offer.precision, form)


def form_for(provider: str, bundle: Bundle | None) -> str:
    """The form of the bundle's graphs that the provider takes. A bundle that lacks it is run, and a warning says so."""
    if provider != CUDA or bundle is None or bundle.precision != "fp16":
        return PLAIN
    if bundle.has_form(ONNXRUNTIME_CUDA):
        return ONNXRUNTIME_CUDA
    log.warning(
        "%s has no graphs of the form %s, which is several times as fast here. Build the bundle again: `sdturbo-export build`.",
        bundle.path,
        ONNXRUNTIME_CUDA,
    )
    return PLAIN


def provider_offers(name: str, provider: str, bundle: Bundle | None) -> list[Offer]:
    """The offers of the backend `name`, which uses a GPU provider of ONNX Runtime and comes with the extra of its name."""
    if refusal := libraries_missing(name, "onnxruntime", name, package="onnxruntime-gpu"):
        return refuse_all(name, refusal)
    with telemetry_off():
        import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        refusal = BackendUnavailable(
            f"The backend {name!r} cannot run here: the installed onnxruntime {onnxruntime.__version__} was built without"
            f" {provider}. In a clone: `pip uninstall onnxruntime`, then `pip install '.[{name}]'`. The two exclude each other."
        )
        return refuse_all(name, refusal)

    def refusal_of(_: object, precision: str) -> BackendUnavailable | None:
        refusal = graph_refusal(name, precision, PRECISIONS, bundle)
        return refusal or (_tf32_refusal(name) if (provider, precision) == (TENSORRT, "fp32") else None)

    return gpu_offers(name, f"onnxruntime {onnxruntime.__version__}", by_graph(PRECISIONS, bundle), refusal_of)


def _tf32_refusal(name: str) -> BackendUnavailable | None:
    """The refusal of fp32, which would be TF32 (TensorFloat-32) unless that is off for the whole process.

    The TensorRT provider builds with TF32. It has no option against it: github.com/microsoft/onnxruntime/issues/26029.
    """
    value = os.environ.get("NVIDIA_TF32_OVERRIDE")
    if value == "0":
        return None
    return BackendUnavailable(
        f"The backend {name!r} would compute fp32 in TF32, with 10 bits of mantissa. ONNX Runtime's TensorRT provider has"
        f" no option against it, and NVIDIA_TF32_OVERRIDE is {value!r}. Set NVIDIA_TF32_OVERRIDE=0 before the process"
        " starts, or use the backend 'tensorrt' or 'cuda', which compute fp32 in full."
    )


def provider_options(
    provider: str, index: int, memory: int, precision: str = "fp32", form: str = PLAIN
) -> dict[str, str]:
    """The provider's options. memory: bytes that it may take.

    `use_tf32` allows tensor cores to convolutions of every precision. Without it most of those in fp16 ran on other units of an
    H100, and took ten times as long. fp16 graphs hold no products in float32 that it would round.
    """
    if provider == TENSORRT:
        return {
            "device_id": str(index),
            "trt_max_workspace_size": str(memory),
            "trt_cuda_graph_enable": "1",
            "trt_builder_optimization_level": "5",
        }
    return {
        "device_id": str(index),
        "gpu_mem_limit": str(memory),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "1" if precision == "fp16" else "0",
        "prefer_nhwc": "1" if form == ONNXRUNTIME_CUDA else "0",  # channels last, as its norms are
        "enable_skip_layer_norm_strict_mode": "1",  # sums in float32
        "enable_cuda_graph": "1",
    }


class OrtGpuBackend:
    """device_type: "cuda", or "cpu" for tests of the shared logic with a CPU provider. form: of the graphs that it takes."""

    def __init__(
        self,
        name: str,
        providers: list[tuple[str, dict[str, str]]],
        device_type: str,
        index: int,
        precision: str,
        form: str = PLAIN,
    ) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._providers = providers
        self._place = (device_type, index)
        self.name, self.device, self.precision, self.form = name, f"{device_type}:{index}", precision, form
        self.version: str = onnxruntime.__version__
        self._keeps: dict[tuple[int, Size], OrtGpuEngine] = {}  # made with the first recording of inpainting

    def session(self, graph: Path, stage: Stage, batch_size: int) -> DeviceSession:
        with readable(graph, self.version) as file:
            compiled, recordable = self._compile(str(file), graph.name, self._providers)
        self._require_provider(compiled, graph)
        shapes = {value.name: value.shape for value in (*compiled.get_inputs(), *compiled.get_outputs())}
        check_tensors(graph, stage, batch_size, shapes)
        engine = OrtGpuEngine(compiled, graph.name, self.device, recordable=recordable)
        return DeviceSession(engine, stage, batch_size, OrtQueue(*self._place))

    def program(
        self,
        sessions: Mapping[str, Any],
        rows: range,
        *,
        image_to_image: bool = False,
        inpainting: InpaintingRun | None = None,
    ) -> Program:
        keeping = None
        if inpainting is not None:
            decoder = sessions["decoder"]
            keeping = Keeping(inpainting, self._keep(decoder.batch_size, *decoder.stage.outputs[0].shape_at(1)[1:3]))
        return DeviceProgram(sessions, rows, OrtQueue(*self._place), image_to_image=image_to_image, keeping=keeping)

    def _keep(self, batch_size: int, height: int, width: int) -> OrtGpuEngine:
        """Inpainting's arithmetic between steps, a small session of its own. All its recordings share it."""
        key = (batch_size, (height, width))
        if key not in self._keeps:
            compiled, recordable = self._compile(keep_graph(batch_size, height, width), KEEP.name, self._providers)
            self._keeps[key] = OrtGpuEngine(compiled, KEEP.name, self.device, recordable=recordable)
        return self._keeps[key]

    def _compile(
        self, model: str | bytes, name: str, providers: list[tuple[str, dict[str, str]]]
    ) -> tuple[InferenceSession, bool]:
        """A session, and whether it may record CUDA graphs. model: an ONNX file, or its bytes."""
        session_options = self._ort.SessionOptions()
        session_options.log_severity_level = 4  # errors are raised
        # shapes are static, so that the second run would take one block beside the tensors of the first
        session_options.enable_mem_pattern = False
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            return self._ort.InferenceSession(model, session_options, providers=providers, enable_fallback=0), True
        except Exception as error:  # onnxruntime's exceptions share no base class
            switches = {"trt_cuda_graph_enable", "enable_cuda_graph"}
            if any(options.get(key) == "1" for _, options in providers for key in switches):
                plain = [(key, {k: v for k, v in options.items() if k not in switches}) for key, options in providers]
                compiled, _ = self._compile(model, name, plain)
                log.warning("%s runs without a CUDA graph: %s", name, error)
                return compiled, False
            raise BackendUnavailable(
                f"onnxruntime {self.version} refuses {name} on {self.device}: {error}. If it is out of memory, free"
                " some or load with image_to_image=False. Otherwise `sdturbo doctor` names the missing part."
            ) from error

    def _require_provider(self, compiled: InferenceSession, graph: Path) -> None:
        """Raise BackendUnavailable unless the chosen provider serves the graph."""
        provider, actual = self._providers[0][0], compiled.get_providers()[0]
        if actual != provider:
            raise BackendUnavailable(
                f"onnxruntime {self.version} would run {graph.name} with {actual} in the place of {provider}, which does not"
                " load: its CUDA, cuDNN or TensorRT libraries are missing or of another version. In a clone,"
                f" `pip install '.[{self.name}]'` brings those it was built for. Nothing runs on another device instead."
            )
        parts = compiled.get_provider_graph_assignment_info() if provider != CPU else ()
        on_cpu = {node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()}
        if products := sorted(on_cpu & PRODUCTS):
            raise BackendUnavailable(
                f"onnxruntime {self.version} would leave {', '.join(products)} of {graph.name} to the CPU: {provider} has no"
                f" kernel for them in {self.precision}. Use another precision or backend."
            )


class OrtGpuEngine:
    def __init__(self, compiled: InferenceSession, name: str, device: str, *, recordable: bool) -> None:
        self.lock = threading.Lock()
        self.recordable = recordable
        self._compiled = compiled
        self._inputs = {value.name for value in compiled.get_inputs()}
        self._title = f"{name} on {device}"
        self._graph_ids = itertools.count(1)

    def bind(self, buffers: Mapping[str, Buffer], queue: OrtQueue) -> Work:
        import onnxruntime

        binding = self._compiled.io_binding()
        for name, buffer in buffers.items():
            bind = binding.bind_ortvalue_input if name in self._inputs else binding.bind_ortvalue_output
            bind(name, buffer.device)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))  # one CUDA graph per set of addresses

        def launch() -> None:
            try:
                self._compiled.run_with_iobinding(binding, options)
            except Exception as error:
                message = f"{self._title} failed: {error}. If it is out of memory, free some and load again."
                raise BackendUnavailable(message) from error

        return launch


class OrtQueue:
    """ONNX Runtime's own order. A run ends when its outputs are there, so every call here is done when it returns."""

    def __init__(self, device_type: str, index: int) -> None:
        self._place = (device_type, index)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        from onnxruntime import OrtValue

        try:
            device = OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, *self._place)
        except Exception as error:
            where = ":".join(map(str, self._place))
            raise BackendUnavailable(f"onnxruntime gives no memory on {where}: {error}") from error
        return Buffer(np.zeros(shape, dtype), device)

    def upload(self, buffer: Buffer) -> None:
        buffer.device.update_inplace(buffer.host)

    def download(self, buffer: Buffer) -> None:
        np.copyto(buffer.host, buffer.device.numpy())

    def record(self, work: Work) -> Work:
        return work  # each session records its own CUDA graph

    def synchronize(self) -> None:
        pass
