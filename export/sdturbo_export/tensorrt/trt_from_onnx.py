"""One ONNX graph to one plan, with TensorRT 10 or 11 or TensorRT for RTX. Networks are strongly typed, so the graph has the
precision.

Not yet run on a GPU: the calls are tested on an imitation of TensorRT and checked against stubs of both versions. TensorRT for
RTX runs them without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdturbo.backends.nvidia.library import TENSORRT, Library
from sdturbo.backends.nvidia.messages import Messages, logger
from sdturbo_export.errors import BuildError

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

Tell = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """workspace_bytes: GPU memory that a layer may use while it runs. None sets no limit.

    optimization_level: of TensorRT's builder, 0 to 5. hardware: one of `sdturbo.bundle.plans.HARDWARE`.
    version_compatible: the plan is slower, and runs with later versions of this TensorRT's major version too.
    capabilities: of a library that compiles ahead, the compute capabilities that the plan is for: one group of its `targets`.
    """

    workspace_bytes: int | None = None
    optimization_level: int = 4
    hardware: str = "none"
    version_compatible: bool = False
    library: Library = TENSORRT
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan, and the timing cache after it: measurements of kernels that the next build need not repeat."""

    plan: bytes
    timings: bytes


def trt_from_onnx(graph: Path, options: PlanOptions, timings: bytes, tell: Tell) -> Compiled:
    """Compile `graph` for the current GPU, or ahead. timings: an earlier timing cache of this GPU and version, or b"".

    tell: takes the share that is done, 0 to 1, from TensorRT's own threads.
    Raises BuildError with the library's words if it lacks an operator or memory, or the graph is faulty.
    """
    messages = Messages()
    with messages.listening():
        return _compile(graph, options, timings, tell, messages)


def _compile(graph: Path, options: PlanOptions, timings: bytes, tell: Tell, messages: Messages) -> Compiled:
    library = options.library
    if TYPE_CHECKING:
        import tensorrt
    else:
        tensorrt = library.load()  # TensorRT for RTX has the same names
    title = f"{library.title} {library.version}"
    try:
        builder = tensorrt.Builder(logger(tensorrt.ILogger))
    except TypeError as error:  # pybind11's, when TensorRT gives none
        raise BuildError(f"{title} does not start: {messages.last()}") from error
    typed = tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger(tensorrt.ILogger))
    if not parser.parse_from_file(str(graph)):
        errors: list[tensorrt.ParserError] = [parser.get_error(i) for i in range(parser.num_errors)]
        words = "; ".join(map(_words, errors)) or messages.last()
        raise BuildError(f"{title} cannot read {graph.name}: {words}")
    config = builder.create_builder_config()
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # for the report of layers
    config.max_aux_streams = 0  # one CUDA stream
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if library.ahead:
        _set_capabilities(config, options)
    else:
        config.hardware_compatibility_level = getattr(tensorrt.HardwareCompatibilityLevel, options.hardware.upper())
        if options.version_compatible:
            config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
        for data in (timings, b""):  # those of another GPU or version are refused
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                break
    stop: list[BaseException] = []
    monitor = _monitor(tensorrt.IProgressMonitor, Phases(tell), stop)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if stop:
        raise stop[0]
    if plan is None:
        raise BuildError(
            f"{title} cannot compile {graph.name}: {messages.last()} If it is out of memory, close what"
            f" else uses the GPU, or lower --workspace-gb and --optimization-level (now {options.optimization_level})."
        )
    tell(1.0)  # the library does not report its last steps
    used = None if library.ahead else config.get_timing_cache()
    return Compiled(bytes(plan), b"" if used is None else bytes(used.serialize()))


def _set_capabilities(config: tensorrt.IBuilderConfig, options: PlanOptions) -> None:
    """Tell the builder the compute capabilities. Raises BuildError if it refuses one of them."""
    rtx_config = cast("tensorrt_rtx.IBuilderConfig", config)
    rtx_config.num_compute_capabilities = len(options.capabilities)
    for i, capability in enumerate(options.capabilities):
        if not rtx_config.set_compute_capability(options.library.member(capability), i):
            raise BuildError(f"{options.library.title} refuses to compile for compute capability {capability}.")


def _words(error: tensorrt.ParserError) -> str:
    """A parser's error, with the node and the operator."""
    return f"{error.desc()} (node {error.node_name()}, operator {error.node_operator()})"


def _monitor(
    kind: type[tensorrt.IProgressMonitor], phases: Phases, stop: list[BaseException]
) -> tensorrt.IProgressMonitor:
    """TensorRT's progress for `phases`. kind: the library's class. An exception in it, Ctrl-C too, must not pass through the
    library. It goes to `stop`, and the build ends at its next step."""

    def guarded(call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            stop.append(error)

    class Monitor(kind):
        def __init__(self) -> None:
            kind.__init__(self)  # pybind11 wants the class by its name

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            guarded(phases.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            guarded(phases.step, phase_name, step)
            return not stop

        def phase_finish(self, phase_name: str) -> None:
            guarded(phases.finish, phase_name)

    return Monitor()


@dataclass(slots=True)
class Phases:
    """TensorRT's nested phases as one share that never shrinks. Called from several threads.

    A step of a phase may hold several phases, one after another, and nobody says how many. So each takes half of what is left
    of its step: a phase's share is (steps done + 1 - 2⁻ᵏ + 2⁻ᵏ⁻¹ · share of the phase within) / steps, after k others.
    """

    tell: Tell
    _open: dict[str, _Phase] = field(default_factory=dict[str, "_Phase"])
    _told: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, from 0, is complete."""
        with self._lock:
            if name not in self._open:
                return
            phase = self._open[name]
            phase.done, phase.left = min(step + 1, phase.steps), 1.0
            for inner_name, inner in list(self._open.items()):
                if inner.parent == name:
                    del self._open[inner_name]
            share = phase.done / phase.steps
            while phase.parent in self._open:
                phase = self._open[phase.parent]
                share = min(phase.done + 1 - phase.left + phase.left / 2 * share, phase.steps) / phase.steps
            self._told = max(self._told, share)  # phases of other threads, or a second outermost one, may be behind
            self.tell(self._told)

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._open.pop(name, None)
            if phase is not None and phase.parent in self._open:
                self._open[phase.parent].left /= 2


@dataclass(slots=True)
class _Phase:
    """left: of the step under way, the share that finished phases within it did not take."""

    parent: str | None
    steps: int
    done: int = 0
    left: float = 1.0
