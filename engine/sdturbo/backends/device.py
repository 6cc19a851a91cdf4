"""Stages whose tensors live on a device. Buffers are made once with a recording, then only copy in, launch, copy out.

`DeviceSession` runs one stage. `DeviceProgram` runs a whole request. Each is recorded once, on a queue of its own, and
replayed. Sessions of different stages may work at the same time (`Pipeline.stream`). They hand on their tensors through host
memory, 0.4 MB per picture.
Knows no library. A backend supplies a `DeviceQueue` and an `Engine` per stage.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from sdturbo.backends.keep import InpaintingRun
from sdturbo.backends.protocols import Tensors
from sdturbo.backends.recording import Buffer, Buffers, DeviceQueue, Recording, Work
from sdturbo.bundle.description import STAGES, Stage, TensorSpec

PROGRAM_STAGES = ("text_encoder", "denoiser", "decoder")  # of text-to-image


class Engine(Protocol):
    """A compiled stage.

    lock: held during a run. Engines that cannot run at the same time share it. recordable: whether a recording of it is
    worth something. A library that launches plainly inside makes it worthless.
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


@dataclass(frozen=True, slots=True)
class Keeping:
    """Inpainting's part in a program. engine: of `keep.KEEP`."""

    run: InpaintingRun
    engine: Engine


class DeviceProgram:
    """text encoder -> (encoder ->) denoiser per row -> decoder. Nothing leaves the device in between.

    rows: of the schedule. image_to_image: the encoder makes the first latents. keeping: a part of the image stays, so that
    `keep` follows the encoder and each step. It runs on the device too. replays: as of a session.
    It takes turns with its sessions, whose engines it uses.
    """

    def __init__(
        self,
        sessions: Mapping[str, DeviceSession],
        rows: range,
        queue: DeviceQueue,
        *,
        image_to_image: bool = False,
        keeping: Keeping | None = None,
    ) -> None:
        names = [name for name in STAGES if name in PROGRAM_STAGES or (image_to_image and name == "encoder")]
        engines = [sessions[name].engine for name in names]
        self._engines = engines if keeping is None else [*engines, keeping.engine]
        kind = "text-to-image" if not image_to_image else "image-to-image" if keeping is None else "inpainting"
        decoder = sessions["decoder"]
        _, height, width, _ = decoder.stage.outputs[0].shape_at(decoder.batch_size)
        self.title = (
            f"{kind} from row {rows[0]} to {rows[-1]} of the schedule, at batch size {decoder.batch_size} and"
            f" {width}x{height} pixels"
        )
        with self._turn():
            made = _launches({name: sessions[name] for name in names}, rows, queue, keeping)
            self._recording = Recording(self.title, made.launches, queue, made.inputs, made.outputs)
        self.replays = self._recording.replays and all(engine.recordable for engine in self._engines)

    def run(self, inputs: Tensors, *, replay: bool = True) -> dict[str, NDArray[Any]]:
        """The last latents and image uint8 (B, H, W, 3).

        inputs: input_ids int64 (B, 77), and latents float32 (B, 4, H/8, W/8). For image-to-image those of the encoder but
        `step` take the place of latents. For inpainting also mask float32 (B, 4, H/8, W/8) of 0 and 1, 1 where latents are
        drawn anew. replay: False launches plainly, for measurements.
        """
        with self._turn():
            return self._recording.run(inputs, replay=replay)

    def _turn(self) -> ExitStack:
        """Hold the locks of all engines, always in the same order."""
        stack = ExitStack()
        for engine in self._engines:
            stack.enter_context(engine.lock)
        return stack


def device_index(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2])


@dataclass(frozen=True, slots=True)
class _Launches:
    """The launches of a program in order, and the tensors that are copied in before and out after them."""

    launches: list[Work]
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]


def _launches(
    sessions: Mapping[str, DeviceSession], rows: range, queue: DeviceQueue, keeping: Keeping | None
) -> _Launches:
    """sessions: with an encoder if the program starts from an image. After each step the latents are in `x` again."""
    text, denoiser, decoder = (sessions[name] for name in PROGRAM_STAGES)
    encoder = sessions.get("encoder")
    size = text.batch_size

    def constant(value: float, shape: tuple[int, ...], dtype: str) -> Buffer:
        buffer = queue.buffer(shape, dtype)
        buffer.host[...] = value
        queue.upload(buffer)  # once: it stays on the device
        return buffer

    steps = {row: constant(row, (), "int64") for row in rows}
    inputs = {spec.name: _buffer(queue, spec, size) for spec in text.stage.inputs}
    embeds = _buffer(queue, text.stage.outputs[0], size)
    x, drawn = (_buffer(queue, denoiser.stage.outputs[0], size) for _ in range(2))
    image = _buffer(queue, decoder.stage.outputs[0], size)
    launches = [_bind(text, inputs, embeds, queue)]
    after_step: list[Work] = []
    if encoder is None:
        inputs["latents"] = x
    else:
        inputs |= {spec.name: _buffer(queue, spec, size) for spec in encoder.stage.inputs if spec.name != "step"}
        given = {**inputs, "step": steps[rows[0]]}
        if keeping is None:
            launches.append(_bind(encoder, given, x, queue))
        else:
            shape = x.host.shape
            start, zeros = queue.buffer(shape, "float32"), constant(0, shape, "float32")
            inputs["mask"] = queue.buffer(shape, "float32")
            launches.append(_bind(encoder, {**given, "noise": zeros}, start, queue))
            own: Buffers = {
                "start": start,
                "noise": inputs["noise"],
                "mask": inputs["mask"],
                "latents": drawn,
                "kept": x,
            }
            # with a mask of zeros it gives the noised start picture, or noise alone
            first = {"start": zeros if keeping.run.pure else start, "mask": zeros, "latents": start}
            sigmas = [constant(sigma, (), "float32") for sigma in keeping.run.sigmas]
            launches.append(keeping.engine.bind({**own, **first, "sigma": sigmas[0]}, queue))
            after_step = [keeping.engine.bind({**own, "sigma": sigma}, queue) for sigma in sigmas[1:]]
    for i, row in enumerate(rows):
        launches.append(_bind(denoiser, {"latents": x, "prompt_embeds": embeds, "step": steps[row]}, drawn, queue))
        if after_step:
            launches.append(after_step[i])
        else:
            x, drawn = drawn, x
    launches.append(_bind(decoder, {"latents": x}, image, queue))
    return _Launches(launches, inputs, {"latents": x, "image": image})


def _bind(session: DeviceSession, tensors: Buffers, output: Buffer, queue: DeviceQueue) -> Work:
    """A launch of the session's stage on other buffers than its own. Its inputs are taken from `tensors` by name."""
    inputs = {spec.name: tensors[spec.name] for spec in session.stage.inputs}
    return session.engine.bind({**inputs, session.stage.outputs[0].name: output}, queue)


def _buffer(queue: DeviceQueue, spec: TensorSpec, batch_size: int) -> Buffer:
    return queue.buffer(spec.shape_at(batch_size), spec.dtype)
