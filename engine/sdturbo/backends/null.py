"""Numbers from a hash of the inputs instead of a model: the pipeline's own logic, tested without a heavy library.

Row i of an output depends on row i of the batched inputs and on all unbatched ones, as in a real stage.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Tensors
from sdturbo.bundle import Bundle, Stage, TensorSpec
from sdturbo.errors import BackendUnavailable


def unavailable() -> str | None:
    return None


def connect(
    *, device: str | None, precision: str | None, num_threads: int | None, bundle: Bundle | None
) -> NullBackend:
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"The null backend has no device {device!r}; it has cpu.")
    return NullBackend()


class NullBackend:
    name, version, device, precision = "null", "1", "cpu", "none"

    def session(self, graph: Path, stage: Stage, batch_size: int) -> NullSession:
        return NullSession(stage, batch_size)


class NullSession:
    def __init__(self, stage: Stage, batch_size: int) -> None:
        self._stage = stage
        self._batch_size = batch_size

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        rows = [self._seed(inputs, row) for row in range(self._batch_size)]
        return {spec.name: np.stack([_draw(spec, seed) for seed in rows]) for spec in self._stage.outputs}

    def _seed(self, inputs: Tensors, row: int) -> int:
        seed = zlib.crc32(self._stage.name.encode())
        for spec in self._stage.inputs:
            value = inputs[spec.name]
            seed = zlib.crc32((value[row] if spec.is_batched else value).tobytes(), seed)
        return seed


def _draw(spec: TensorSpec, seed: int) -> NDArray[Any]:
    shape = spec.shape_at(1)[1:]
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)
