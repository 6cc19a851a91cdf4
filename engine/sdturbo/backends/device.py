"""Stages whose tensors live on a device. Buffers are made once at load, then only copy in, launch, copy out.

`DeviceSession` runs one stage. `DeviceProgram` runs a whole request. Each is recorded once, on a queue of its own, and
replayed. Sessions of different stages may work at the same time (`Pipeline.stream`). They hand on their tensors through host
memory, 0.4 MB per picture.
Knows no library. A backend supplies a `DeviceQueue` and an `Engine` per stage.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from numpy.typing import NDArray

from sdturbo.backends.protocols import Tensors
from sdturbo.backends.recording import Buffer, Buffers, DeviceQueue, Recording, Work
from sdturbo.bundle.description import Stage, TensorSpec

PROGRAM_STAGES = ("text_encoder", "denoiser", "decoder")  # of text-to-image


class Engine(Protocol):
    """A compiled stage.

    lock: held during a run. Engines that cannot run at the same time share it. recordable: whether a recording of it is
    worth something. It is not where a library launches plainly inside.
    """

    @property
    def lock(self) -> threading.Lock: ...
    @property
    def recordable(self) -> bool: ...
    def bind(self, buffers: Buffers, queue: Any, /) -> Work:
        """A function that enqueues one run on these buffers, named after the stage's tensors."""
        ...


class DeviceSession:
    """One stage at one batch size. Calls from several threads take turns.

    replays: whether its recording is replayed. Otherwise it is launched plainly, which takes longer.
    """

    def __init__(self, engine: Engine, stage: Stage, batch_size: int, queue: DeviceQueue) -> None:
        self.engine, self.stage, self.batch_size, self.lock = engine, stage, batch_size, engine.lock
        inputs = {spec.name: _buffer(queue, spec, batch_size) for spec in stage.inputs}
        outputs = {spec.name: _buffer(queue, spec, batch_size) for spec in stage.outputs}
        launch = engine.bind({**inputs, **outputs}, queue)
        self.title = stage.title(batch_size)
        with self.lock:
            self._recording = Recording(self.title, [launch], queue, inputs, outputs)
        self.replays = self._recording.replays and engine.recordable

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """Outputs by name. replay: False launches plainly, for measurements."""
        with self.lock:
            return self._recording.run(inputs, replay=replay)


class DeviceProgram:
    """text encoder -> (encoder ->) denoiser per row -> decoder. Nothing leaves the device in between.

    rows: of the schedule. image_to_image: the encoder makes the first latents. replays: as of a session.
    It takes turns with its sessions, whose engines it uses.
    """

    def __init__(
        self, sessions: Mapping[str, DeviceSession], rows: range, queue: DeviceQueue, *, image_to_image: bool = False
    ) -> None:
        text, denoiser, decoder = (sessions[name] for name in PROGRAM_STAGES)
        encoder = sessions["encoder"] if image_to_image else None
        self._sessions = [session for session in (text, encoder, denoiser, decoder) if session is not None]
        size = text.batch_size

        def buffers(specs: tuple[TensorSpec, ...]) -> dict[str, Buffer]:
            return {spec.name: _buffer(queue, spec, size) for spec in specs}

        steps = {row: queue.buffer((), "int64") for row in rows}
        for row, buffer in steps.items():
            buffer.host[...] = row
            queue.upload(buffer)  # once: it stays on the device
        inputs = buffers(text.stage.inputs)
        embeds = _buffer(queue, text.stage.outputs[0], size)
        latents = [_buffer(queue, denoiser.stage.outputs[0], size) for _ in range(2)]
        image = _buffer(queue, decoder.stage.outputs[0], size)
        launches = [_bind(text, inputs, embeds, queue)]
        if encoder is None:
            inputs["latents"] = latents[0]
        else:
            start = buffers(tuple(spec for spec in encoder.stage.inputs if spec.name != "step"))
            launches.append(_bind(encoder, {**start, "step": steps[rows[0]]}, latents[0], queue))
            inputs |= start
        for i, row in enumerate(rows):
            tensors = {"latents": latents[i % 2], "prompt_embeds": embeds, "step": steps[row]}
            launches.append(_bind(denoiser, tensors, latents[(i + 1) % 2], queue))
        last = latents[len(rows) % 2]
        launches.append(_bind(decoder, {"latents": last}, image, queue))
        kind = "image-to-image" if image_to_image else "text-to-image"
        _, height, width, _ = decoder.stage.outputs[0].shape_at(size)
        self.title = (
            f"{kind} from row {rows[0]} to {rows[-1]} of the schedule, at batch size {size} and {width}x{height} pixels"
        )
        with self._turn():
            self._recording = Recording(self.title, launches, queue, inputs, {"latents": last, "image": image})
        self.replays = self._recording.replays and all(session.engine.recordable for session in self._sessions)

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """The last latents and image uint8 (B, H, W, 3).

        inputs: input_ids int64 (B, 77), and latents float32 (B, 4, H/8, W/8). For image-to-image those of the encoder but
        `step` take the place of latents. replay: False launches plainly, for measurements.
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
