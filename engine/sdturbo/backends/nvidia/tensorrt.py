"""TensorRT 10 and 11, or TensorRT for RTX, on an NVIDIA GPU: plans of `sdturbo-export trt`, checked before they are loaded.

Every buffer is made with its recording. A whole request, from noise or from an image, runs on one stream and is replayed as one
CUDA graph (`device.DeviceProgram`). Inpainting's arithmetic between steps is a kernel of ours in it. Not yet run on a GPU.
Tests run the path on an imitation of CUDA and TensorRT. The type checker holds it against stubs of the real bindings of both
versions.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdturbo.backends.checks import by_graph, check_tensors, graph_refusal
from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.backends.device import PROGRAM_STAGES, DeviceProgram, DeviceSession, Keeping, device_index
from sdturbo.backends.keep import InpaintingRun
from sdturbo.backends.nvidia.gpus import Gpu, find_gpus, gpu_offers, libraries_missing
from sdturbo.backends.nvidia.keep_kernel import KeepKernel
from sdturbo.backends.nvidia.kernel_cache import KernelCache
from sdturbo.backends.nvidia.library import TENSORRT, Library, installed_library
from sdturbo.backends.nvidia.messages import Messages, logger
from sdturbo.backends.nvidia.packages import mixed_majors
from sdturbo.backends.nvidia.stream import CudaStream, Scratch
from sdturbo.backends.protocols import Program
from sdturbo.backends.recording import Buffer, Work
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import PLAIN, Stage
from sdturbo.bundle.plans import Plan, PlanKey, choose_plan, plan_bytes, read_plans
from sdturbo.errors import BackendUnavailable, BundleError, PlanMismatch

NAME = "tensorrt"
PRECISIONS = ("fp16", "fp32")


def offers(bundle: Bundle | None) -> list[Offer]:
    library = installed_library() or TENSORRT
    if missing := libraries_missing(NAME, library.module, library.name, package=library.package):
        return refuse_all(NAME, missing)
    plans = read_plans(bundle) if bundle is not None else []
    library = _library_of(plans)
    if library is TENSORRT and (mixed := mixed_majors(NAME, library.name)):
        return refuse_all(NAME, mixed)
    if wrong := library.wrong_version():
        return refuse_all(NAME, wrong)

    @functools.cache  # once for GPUs of one kind: hashing the graphs takes a while
    def plan_refusal(kind: Gpu) -> PlanMismatch | None:
        return _plan_refusal(bundle, plans, library, kind) if bundle is not None else None

    def refusal_of(gpu: Gpu, precision: str) -> BackendUnavailable | None:
        of_graph = graph_refusal(NAME, precision, PRECISIONS, bundle)
        return library.not_listed(gpu) or of_graph or plan_refusal(replace(gpu, index=0))

    return gpu_offers(NAME, f"{library.title} {library.version}", by_graph(PRECISIONS, bundle), refusal_of)


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> TrtBackend:
    gpu = find_gpus()[device_index(offer.device)]
    library = _library_of(read_plans(bundle) if bundle is not None else [])
    return TrtBackend(gpu, library, offer.precision, bundle)


def _library_of(plans: Sequence[Plan]) -> Library:
    """The installed library. Where both are, the one that made the plans."""
    return installed_library({plan.key.library for plan in plans}) or TENSORRT


def _plan_refusal(bundle: Bundle, plans: Sequence[Plan], library: Library, gpu: Gpu) -> PlanMismatch | None:
    """The refusal of the first plan that the GPU lacks. Nothing is loaded."""
    try:
        for stage in PROGRAM_STAGES:
            for batch_size, (height, width) in product(bundle.batch_sizes, bundle.sizes):
                graph = bundle.graph(stage, batch_size, height=height, width=width)
                choose_plan(bundle, plans, stage, batch_size, machine_key(library, gpu, bundle, graph))
    except PlanMismatch as mismatch:
        return mismatch
    return None


def machine_key(library: Library, gpu: Gpu, bundle: Bundle, graph: Path) -> PlanKey:
    """The key that a plan of the bundle's graph must fit to run here."""
    digest = bundle.graph_sha256(graph)
    assert digest is not None
    machine = (library.version, gpu.compute_capability, gpu.name, gpu.driver)
    return PlanKey(*machine, digest, bundle.precision, library=library.name)


class TrtBackend:
    name, form = NAME, PLAIN

    def __init__(self, gpu: Gpu, library: Library, precision: str, bundle: Bundle | None) -> None:
        self.device, self.precision = f"cuda:{gpu.index}", precision
        self.version = library.version if library is TENSORRT else f"{library.version} ({library.title})"
        self.gpu, self.library = gpu, library
        self._bundle = bundle
        self._scratch: dict[str, Scratch] = defaultdict(Scratch)  # by stage: its batch sizes take turns, stages do not
        self._plans = read_plans(bundle) if bundle is not None else []
        self._keep: KeepKernel | None = None  # loaded with the first recording of inpainting

    def session(self, graph: Path, stage: Stage, batch_size: int) -> DeviceSession:
        bundle = self._bundle
        if bundle is None:
            raise BackendUnavailable("TensorRT runs the plans of a bundle. Connect with bundle=….")
        if graph not in [bundle.path / file for name, file in stage.graphs.items() if name.form == PLAIN]:
            message = f"{graph} is not the bundle's {stage.name}. TensorRT runs the bundle's plans alone."
            raise BackendUnavailable(message)
        machine = machine_key(self.library, self.gpu, bundle, graph)
        plan = choose_plan(bundle, self._plans, stage.name, batch_size, machine)
        data, kernels = plan_bytes(bundle, plan), None
        if plan.key.ahead:
            sha256, _ = bundle.files[plan.file]
            kernels = KernelCache(self.library, self.gpu, sha256, trust_unchanged=bundle.trust_unchanged)
        return self.open(data, stage, batch_size, graph, host_code=plan.key.version_compatible, kernels=kernels)

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
            self._keep = self._keep or KeepKernel(self.gpu.index)
            keeping = Keeping(inpainting, self._keep)
        return DeviceProgram(sessions, rows, CudaStream(self.gpu.index), image_to_image=image_to_image, keeping=keeping)

    def open(
        self,
        data: bytes,
        stage: Stage,
        batch_size: int,
        graph: Path,
        *,
        host_code: bool = False,
        kernels: KernelCache | None = None,
    ) -> DeviceSession:
        """A session of a plan whose bytes are trusted. graph: the ONNX file that it was compiled from.

        host_code: let the plan bring the runtime that it was compiled with (version-compatible plans).
        kernels: of a plan whose kernels are compiled when it is loaded.
        Raises BackendUnavailable if TensorRT refuses it, BundleError if its tensors are not the stage's.
        """
        stream = CudaStream(self.gpu.index)
        stream.handle()  # makes the GPU current: TensorRT loads the plan there
        title = f"the plan of {graph.name} on {self.device}"
        scratch = self._scratch[stage.name]
        engine = TrtEngine(self.library, data, title, stream, scratch, host_code=host_code, kernels=kernels)
        check_tensors(graph, stage, batch_size, engine.shapes)
        declared = {spec.name: spec.dtype for spec in (*stage.inputs, *stage.outputs)}
        if engine.dtypes != declared:
            raise BundleError(graph, [f"its plan has the dtypes {engine.dtypes}, but the bundle declares {declared}"])
        session = DeviceSession(engine, stage, batch_size, stream)
        if kernels is not None:
            kernels.keep()  # the session has run once
        return session


class TrtEngine:
    """A loaded plan and its one execution context, which computes in shared memory. A run holds `lock`.

    Every launch sets the tensors' addresses. A CUDA graph keeps the addresses of the launches that it recorded.
    kernels: those that were compiled when it was loaded, None with TensorRT.
    """

    recordable = True

    def __init__(
        self,
        library: Library,
        data: bytes,
        title: str,
        stream: CudaStream,
        scratch: Scratch,
        *,
        host_code: bool,
        kernels: KernelCache | None = None,
    ) -> None:
        if TYPE_CHECKING:
            import tensorrt
        else:
            tensorrt = library.load()  # TensorRT for RTX has the same names
        self.lock, self.kernels = scratch.lock, kernels
        self._library, self._title = library, title
        self._messages = Messages()
        with self._messages.listening():
            try:
                self._loader = tensorrt.Runtime(logger(tensorrt.ILogger))
            except TypeError as error:  # pybind11's, when TensorRT gives none
                message = f"{library.title} {library.version} does not start: {self._messages.last()}"
                raise BackendUnavailable(message) from error
            self._loader.engine_host_code_allowed = host_code
            engine = self._loader.deserialize_cuda_engine(data)
            strategy = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
            if engine is None:
                context = None
            elif kernels is None:
                context = engine.create_execution_context(strategy)
            else:
                context = kernels.context(engine, strategy)
        if engine is None or context is None:
            raise BackendUnavailable(
                f"{library.title} {library.version} cannot load {title}: {self._messages.last()} If it is out of memory, free"
                " some or load with image_to_image=False. Otherwise compile the plans again with `sdturbo-export trt`."
            )
        self._engine, self._context = engine, context
        self._block = scratch.block(engine.device_memory_size_v2, stream)
        context.set_device_memory(self._block.address, self._block.size)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self.dtypes = {name: np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))).name for name in names}

    def bind(self, buffers: Mapping[str, Buffer], stream: CudaStream) -> Work:
        def launch() -> None:
            handle = stream.handle()
            with self._messages.listening():
                bound = all(
                    self._context.set_tensor_address(name, buffer.device.address) for name, buffer in buffers.items()
                )
                started = bound and self._context.execute_async_v3(handle)
            if not started:
                raise BackendUnavailable(f"{self._library.title} failed to run {self._title}: {self._messages.last()}")

        return launch

    def layers(self) -> str:
        """A JSON document with the kernel, formats and precision of every layer."""
        if TYPE_CHECKING:
            import tensorrt
        else:
            tensorrt = self._library.load()
        inspector = self._engine.create_engine_inspector()
        return inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
