"""Work on a device that is recorded once and replayed: buffers, the queue that a backend supplies, and the recording itself.

Knows no library, and nothing of stages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends.checks import copy_inputs
from sdturbo.backends.protocols import Tensors

log = logging.getLogger("sdturbo")

Work = Callable[[], None]
# Relative L2 distance of a replay to plain launches. A kernel that adds in another order each time stays far below it, also
# in float16. Values of another request, or of none, are at a distance of about 1.
TOLERANCE = 1e-2


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


class Recording:
    """Launches between the copies of their inputs and outputs, recorded once and replayed. title: its name in the log.

    Construction runs it once launched plainly and once replayed. If recording fails, or the values differ by more than
    `TOLERANCE`, that is logged. It is then launched plainly, and `replays` is False. No reference leads back to its owner.
    Device memory is thus freed with the owner, and does not wait for Python's search for cycles.
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
        differing = [name for name, values in replayed.items() if not same_values(values, plain[name])]
        self.replays = not differing
        if self.replays:
            self._replay = replay
        else:
            names = ", ".join(differing)
            log.warning(
                "%s: launched plainly, for a replay gave other values than plain launches (%s)", self._title, names
            )


def same_values(values: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether two arrays differ by `TOLERANCE` at most. What is not finite must be so at the same places."""
    a, b = values.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return False
    return bool(np.linalg.norm(a[finite] - b[finite]) <= TOLERANCE * np.linalg.norm(b[finite]))
