"""Numbers from a hash of the inputs in place of a model. Tests run the pipeline's own logic on it, without a heavy library.

Row i of an output depends on row i of the batched inputs and on all unbatched ones, as in a real stage. The devices "null:0"
and "null:1" have memory of their own and record. They run the part that GPU backends share, `device.py`.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.checks import check_inputs
from sdturbo.backends.choice import Offer
from sdturbo.backends.device import DeviceProgram, DeviceSession, Keeping
from sdturbo.backends.keep import KEEP, InpaintingRun, keep
from sdturbo.backends.protocols import Program, Session, Tensors
from sdturbo.backends.recording import Buffer, Work
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import PLAIN, Stage, TensorSpec

NAME = "null"
DEVICES = ("cpu", "null:0", "null:1")
PRECISION = "none"  # nothing is computed


def offers(bundle: Bundle | None) -> list[Offer]:
    return [Offer(NAME, device, PRECISION) for device in DEVICES]


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> NullBackend:
    return NullBackend(offer.device)


class NullBackend:
    name, version, precision, form = NAME, "1", PRECISION, PLAIN

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._records = device in DEVICES[1:]

    def session(self, graph: Path, stage: Stage, batch_size: int) -> Session:
        if self._records:
            return DeviceSession(NullEngine(stage, batch_size), stage, batch_size, NullQueue())
        return NullSession(stage, batch_size)

    def program(
        self,
        sessions: Mapping[str, Any],
        rows: range,
        *,
        image_to_image: bool = False,
        inpainting: InpaintingRun | None = None,
    ) -> Program | None:
        if not self._records:
            return None
        keeping = None if inpainting is None else Keeping(inpainting, NullKeep())
        return DeviceProgram(sessions, rows, NullQueue(), image_to_image=image_to_image, keeping=keeping)


class NullSession:
    def __init__(self, stage: Stage, batch_size: int) -> None:
        self._stage = stage
        self._batch_size = batch_size
        self._expected = {spec.name: np.empty(spec.shape_at(batch_size), spec.dtype) for spec in stage.inputs}

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        check_inputs(self._expected, inputs)
        rows = [self._seed(inputs, row) for row in range(self._batch_size)]
        return {spec.name: np.stack([_draw(spec, seed) for seed in rows]) for spec in self._stage.outputs}

    def _seed(self, inputs: Tensors, row: int) -> int:
        values = (inputs[spec.name][row] if "B" in spec.shape else inputs[spec.name] for spec in self._stage.inputs)
        return zlib.crc32(self._stage.name.encode() + b"".join(value.tobytes() for value in values))


class NullQueue:
    """Device memory is an array of its own. Nothing runs before `synchronize`, and nothing at all while recording."""

    def __init__(self) -> None:
        self._pending: list[Work] = []

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return Buffer(np.zeros(shape, dtype), np.zeros(shape, dtype))

    def enqueue(self, work: Work) -> None:
        self._pending.append(work)

    def upload(self, buffer: Buffer) -> None:
        self.enqueue(lambda: np.copyto(buffer.device, buffer.host))

    def download(self, buffer: Buffer) -> None:
        self.enqueue(lambda: np.copyto(buffer.host, buffer.device))

    def record(self, work: Work) -> Work:
        before, self._pending = self._pending, []
        try:
            work()
            recorded = tuple(self._pending)
        finally:
            self._pending = before
        return lambda: self._pending.extend(recorded)

    def synchronize(self) -> None:
        while self._pending:
            self._pending.pop(0)()


class NullEngine:
    recordable = True

    def __init__(self, stage: Stage, batch_size: int) -> None:
        self.lock = threading.Lock()
        self._stage = stage
        self._session = NullSession(stage, batch_size)

    def bind(self, buffers: Mapping[str, Buffer], queue: NullQueue) -> Work:
        def run() -> None:
            outputs = self._session.run({spec.name: buffers[spec.name].device for spec in self._stage.inputs})
            for name, value in outputs.items():
                np.copyto(buffers[name].device, value)

        return lambda: queue.enqueue(run)


class NullKeep:
    """Inpainting's arithmetic is computed here too."""

    recordable = True

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def bind(self, buffers: Mapping[str, Buffer], queue: NullQueue) -> Work:
        inputs = [buffers[spec.name] for spec in KEEP.inputs]
        (output,) = (buffers[spec.name] for spec in KEEP.outputs)

        def run() -> None:
            np.copyto(output.device, keep(*(buffer.device for buffer in inputs)))

        return lambda: queue.enqueue(run)


def _draw(spec: TensorSpec, seed: int) -> NDArray[Any]:
    shape = spec.shape_at(1)[1:]
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)
