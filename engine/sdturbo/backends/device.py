"""Stages whose tensors live on a device: buffers made once at load, then only copy in, launch, copy out.

`DeviceSession` runs one stage, `DeviceProgram` a whole request: text encoder, denoiser × n and decoder. Each is recorded
once, on a stream of its own, and replayed: sessions of different stages may work at the same time (`Pipeline.stream`), and
hand on through host memory what is small there (0.4 MB a picture). Knows no library: a backend supplies a `Stream` and an
`Engine` for each stage.
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
    """A tensor's place on the device, in the library's terms, and its twin in host memory. Neither ever moves."""

    host: NDArray[Any]
    device: Any


class Stream(Protocol):
    """A queue of work on a device that is done in order. One thread at a time."""

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer: ...
    def upload(self, buffer: Buffer) -> None:
        """Enqueue the copy host -> device."""
        ...

    def download(self, buffer: Buffer) -> None:
        """Enqueue the copy device -> host."""
        ...

    def record(self, work: Work) -> Work:
        """What `work` enqueues, as a function that enqueues it again at once. Raises RuntimeError if that fails."""
        ...

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        ...


class Engine(Protocol):
    """A compiled stage. lock: held by whoever runs it; engines that cannot run at the same time share it."""

    @property
    def lock(self) -> threading.Lock: ...
    def bind(self, buffers: Mapping[str, Buffer], stream: Any) -> Work:
        """A function that enqueues one run on these buffers, named after the stage's tensors."""
        ...


class Recording:
    """Launches with the copies of their inputs before and of their outputs after them, recorded once and replayed.

    At construction it runs once launched plainly and once replayed. If recording fails or the two differ, that is logged
    and it is launched plainly from then on: `replays` says which. Nothing in it leads back to its owner, so that device
    memory is freed when the owner goes, and not when Python next looks for cycles.
    """

    def __init__(
        self, what: str, launches: Sequence[Work], stream: Stream, inputs: Sequence[Buffer], outputs: Sequence[Buffer]
    ) -> None:
        def work() -> None:
            for buffer in inputs:
                stream.upload(buffer)
            for launch in launches:
                launch()
            for buffer in outputs:
                stream.download(buffer)

        self._what, self._work, self._stream = what, work, stream
        self._inputs, self._outputs = inputs, outputs
        self.replays = False
        self._replay: Work = work
        self._record()

    def run(self, *, replay: bool = True) -> list[NDArray[Any]]:
        """Copies of what the outputs' host memory holds after a run. replay: False launches plainly (measurements)."""
        try:
            (self._replay if replay else self._work)()
        finally:  # when it is the next one's turn nothing of this one is under way, even if a launch failed
            self._stream.synchronize()
        return [buffer.host.copy() for buffer in self._outputs]

    def _record(self) -> None:
        """Record the work, and keep the recording if it does what the plain launches did."""
        self._fill()
        plain = self.run(replay=False)
        try:
            replay = self._stream.record(self._work)
        except RuntimeError as error:
            log.warning("%s: launched plainly, for recording failed (%s)", self._what, error)
            return
        for buffer in self._outputs:
            buffer.host[...] = 0
        self._fill()
        self._replay = replay
        replayed = self.run()
        self.replays = all(
            np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
            for one, other in zip(plain, replayed, strict=True)
        )
        if not self.replays:
            self._replay = self._work
            log.warning("%s: launched plainly, for a replay gave other values than plain launches", self._what)

    def _fill(self) -> None:
        """Standard normals where floats go in, zeros elsewhere."""
        rng = np.random.default_rng(0)
        for buffer in self._inputs:
            floats = buffer.host.dtype.kind == "f"
            buffer.host[...] = rng.standard_normal(buffer.host.shape, np.float32) if floats else 0


class DeviceSession:
    """One stage at one batch size. Calls from several threads take turns."""

    def __init__(self, engine: Engine, stage: Stage, batch_size: int, stream: Stream) -> None:
        self.engine, self.stage, self.batch_size, self.lock = engine, stage, batch_size, engine.lock
        self._inputs = {spec.name: _buffer(stream, spec, batch_size) for spec in stage.inputs}
        self._outputs = {spec.name: _buffer(stream, spec, batch_size) for spec in stage.outputs}
        self._host = {name: buffer.host for name, buffer in self._inputs.items()}
        launches = [engine.bind({**self._inputs, **self._outputs}, stream)]
        what = f"{stage.name} at batch size {batch_size}"
        with self.lock:
            self._recording = Recording(
                what, launches, stream, list(self._inputs.values()), list(self._outputs.values())
            )

    @property
    def replays(self) -> bool:
        return self._recording.replays

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """Outputs by name. replay: False launches plainly (measurements)."""
        with self.lock:
            copy_inputs(self._host, inputs)
            return dict(zip(self._outputs, self._recording.run(replay=replay), strict=True))


class DeviceProgram:
    """text encoder -> denoiser for each of `steps` -> decoder; embeddings and latents never leave the device in between.

    Takes turns with its sessions, whose engines it uses.
    """

    def __init__(self, sessions: Mapping[str, DeviceSession], steps: range, stream: Stream) -> None:
        text, denoiser, decoder = self._sessions = [sessions[name] for name in PROGRAM_STAGES]
        size = text.batch_size
        self._input_ids = _buffer(stream, text.stage.inputs[0], size)
        embeds = _buffer(stream, text.stage.outputs[0], size)
        latents = [_buffer(stream, denoiser.stage.outputs[0], size) for _ in range(2)]
        self._first, self._last = latents[0], latents[len(steps) % 2]
        self._image = _buffer(stream, decoder.stage.outputs[0], size)
        self._host = {"input_ids": self._input_ids.host, "latents": self._first.host}
        launches = [_bind(text, {"input_ids": self._input_ids}, embeds, stream)]
        for i, step in enumerate(steps):
            row = stream.buffer((), "int64")
            row.host[...] = step
            stream.upload(row)  # once: it stays on the device
            inputs = {"latents": latents[i % 2], "prompt_embeds": embeds, "step": row}
            launches.append(_bind(denoiser, inputs, latents[(i + 1) % 2], stream))
        launches.append(_bind(decoder, {"latents": self._last}, self._image, stream))
        what = f"{len(steps)} steps at batch size {size}"
        with self._turn():
            self._recording = Recording(
                what, launches, stream, (self._input_ids, self._first), (self._last, self._image)
            )

    @property
    def replays(self) -> bool:
        return self._recording.replays

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """input_ids int64 (B, 77) and latents float32 (B, 4, H/8, W/8) to the last `latents` and `image` uint8 (B, H, W, 3).

        replay: False launches plainly (measurements).
        """
        with self._turn():
            copy_inputs(self._host, inputs)
            latents, image = self._recording.run(replay=replay)
            return {"latents": latents, "image": image}

    def _turn(self) -> ExitStack:
        """Holds the locks of all sessions, always in the same order."""
        stack = ExitStack()
        for session in self._sessions:
            stack.enter_context(session.lock)
        return stack


def device_index(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2])


def _bind(session: DeviceSession, inputs: Mapping[str, Buffer], output: Buffer, stream: Stream) -> Work:
    """A launch of the session's stage on other buffers than its own, its inputs taken by name."""
    taken = {spec.name: inputs[spec.name] for spec in session.stage.inputs}
    return session.engine.bind({**taken, session.stage.outputs[0].name: output}, stream)


def _buffer(stream: Stream, spec: TensorSpec, batch_size: int) -> Buffer:
    return stream.buffer(spec.shape_at(batch_size), spec.dtype)
