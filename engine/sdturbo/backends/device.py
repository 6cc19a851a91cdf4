"""Stages whose tensors live on a device. Buffers are made once at load, then only copy in, launch, copy out.

`DeviceSession` runs one stage. `DeviceProgram` runs a whole request: text encoder, denoiser × n and decoder. Each is recorded
once, on a queue of its own, and replayed. Sessions of different stages may work at the same time (`Pipeline.stream`). They
hand on their tensors through host memory, 0.4 MB per picture.
Knows no library. A backend supplies a `DeviceQueue` and an `Engine` per stage.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.checks import copy_inputs
from sdturbo.backends.protocols import Tensors
from sdturbo.bundle.description import Stage, TensorSpec

log = logging.getLogger("sdturbo")

Work = Callable[[], None]
PROGRAM_STAGES = ("text_encoder", "denoiser", "decoder")


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A tensor's memory on the device, in the library's terms, and its twin on the host. Neither ever moves."""

    host: NDArray[Any]
    device: Any


Buffers = Mapping[str, Buffer]


class DeviceQueue(Protocol):
    """Work on a device, done in order. CUDA calls it a stream. One thread at a time."""

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer: ...
    def upload(self, buffer: Buffer) -> None:
        """Enqueue the copy host -> device."""

    def download(self, buffer: Buffer) -> None:
        """Enqueue the copy device -> host."""

    def record(self, work: Work) -> Work:
        """A function that enqueues again, at once, all that `work` enqueues. Raises RuntimeError if that fails."""
        ...

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""


class Engine(Protocol):
    """A compiled stage. lock: held during a run. Engines that cannot run at the same time share it."""

    @property
    def lock(self) -> threading.Lock: ...
    def bind(self, buffers: Buffers, queue: Any, /) -> Work:
        """A function that enqueues one run on these buffers, named after the stage's tensors."""
        ...


class Recording:
    """Launches between the copies of their inputs and outputs, recorded once and replayed. title: its name in the log.

    Construction runs it once launched plainly and once replayed. If recording fails or the values differ, that is logged. It
    is then launched plainly, and `replays` is False. No reference leads back to its owner. Device memory is thus freed with
    the owner, and does not wait for Python's search for cycles.
    """

    def __init__(
        self, title: str, launches: Sequence[Work], queue: DeviceQueue, inputs: Buffers, outputs: Buffers
    ) -> None:
        def work() -> None:
            for buffer in inputs.values():
                queue.upload(buffer)
            for launch in launches:
                launch()
            for buffer in outputs.values():
                queue.download(buffer)

        self._title, self._work, self._queue, self._outputs = title, work, queue, outputs
        self._host = {name: buffer.host for name, buffer in inputs.items()}
        self.replays = False
        self._replay: Work = work
        self._record()

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """Copies of the outputs by name. replay: False launches plainly, for measurements. Raises InputError."""
        copy_inputs(self._host, inputs)
        return self._run(self._replay if replay else self._work)

    def _run(self, work: Work) -> dict[str, NDArray[Any]]:
        try:
            work()
        finally:  # even if a launch failed, nothing is under way when the next run begins
            self._queue.synchronize()
        return {name: buffer.host.copy() for name, buffer in self._outputs.items()}

    def _record(self) -> None:
        """Record the work, and keep the recording if its replay gives the values of plain launches."""
        rng = np.random.default_rng(0)
        for array in self._host.values():  # standard normals where floats go in, zeros elsewhere
            array[...] = rng.standard_normal(array.shape, np.float32) if array.dtype.kind == "f" else 0
        samples = {name: array.copy() for name, array in self._host.items()}
        plain = self._run(self._work)
        try:
            replay = self._queue.record(self._work)
        except RuntimeError as error:
            log.warning("%s: launched plainly, for recording failed (%s)", self._title, error)
            return
        for buffer in self._outputs.values():
            buffer.host[...] = 0
        copy_inputs(self._host, samples)  # an output may have been copied over an input
        replayed = self._run(replay)
        self.replays = all(
            np.array_equal(values, plain[name], equal_nan=values.dtype.kind == "f") for name, values in replayed.items()
        )
        if self.replays:
            self._replay = replay
        else:
            log.warning("%s: launched plainly, for a replay gave other values than plain launches", self._title)


class DeviceSession:
    """One stage at one batch size. Calls from several threads take turns."""

    def __init__(self, engine: Engine, stage: Stage, batch_size: int, queue: DeviceQueue) -> None:
        self.engine, self.stage, self.batch_size, self.lock = engine, stage, batch_size, engine.lock
        inputs = {spec.name: _buffer(queue, spec, batch_size) for spec in stage.inputs}
        outputs = {spec.name: _buffer(queue, spec, batch_size) for spec in stage.outputs}
        launch = engine.bind({**inputs, **outputs}, queue)
        with self.lock:
            title = f"{stage.name} at batch size {batch_size}"
            self._recording = Recording(title, [launch], queue, inputs, outputs)
        self.replays = self._recording.replays

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """Outputs by name. replay: False launches plainly, for measurements."""
        with self.lock:
            return self._recording.run(inputs, replay=replay)


class DeviceProgram:
    """text encoder -> denoiser per step -> decoder. Embeddings and latents never leave the device in between.

    It takes turns with its sessions, whose engines it uses.
    """

    def __init__(self, sessions: Mapping[str, DeviceSession], steps: range, queue: DeviceQueue) -> None:
        text, denoiser, decoder = self._sessions = [sessions[name] for name in PROGRAM_STAGES]
        size = text.batch_size
        input_ids = _buffer(queue, text.stage.inputs[0], size)
        embeds = _buffer(queue, text.stage.outputs[0], size)
        latents = [_buffer(queue, denoiser.stage.outputs[0], size) for _ in range(2)]
        image = _buffer(queue, decoder.stage.outputs[0], size)
        launches = [_bind(text, {"input_ids": input_ids}, embeds, queue)]
        for i, step in enumerate(steps):
            row = queue.buffer((), "int64")
            row.host[...] = step
            queue.upload(row)  # once: it stays on the device
            tensors = {"latents": latents[i % 2], "prompt_embeds": embeds, "step": row}
            launches.append(_bind(denoiser, tensors, latents[(i + 1) % 2], queue))
        last = latents[len(steps) % 2]
        launches.append(_bind(decoder, {"latents": last}, image, queue))
        inputs, outputs = {"input_ids": input_ids, "latents": latents[0]}, {"latents": last, "image": image}
        with self._turn():
            title = f"{len(steps)} steps at batch size {size}"
            self._recording = Recording(title, launches, queue, inputs, outputs)
        self.replays = self._recording.replays

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """From input_ids int64 (B, 77) and latents float32 (B, 4, H/8, W/8) to the last latents and image uint8 (B, H, W, 3).

        replay: False launches plainly, for measurements.
        """
        with self._turn():
            return self._recording.run(inputs, replay=replay)

    def _turn(self) -> ExitStack:
        """Hold the locks of all sessions, always in the same order."""
        stack = ExitStack()
        for session in self._sessions:
            stack.enter_context(session.lock)
        return stack


def device_index(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2])


def _bind(session: DeviceSession, tensors: Buffers, output: Buffer, queue: DeviceQueue) -> Work:
    """A launch of the session's stage on other buffers than its own. Its inputs are taken from `tensors` by name."""
    inputs = {spec.name: tensors[spec.name] for spec in session.stage.inputs}
    return session.engine.bind({**inputs, session.stage.outputs[0].name: output}, queue)


def _buffer(queue: DeviceQueue, spec: TensorSpec, batch_size: int) -> Buffer:
    return queue.buffer(spec.shape_at(batch_size), spec.dtype)
