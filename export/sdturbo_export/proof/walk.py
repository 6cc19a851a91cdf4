"""The one walk of a request for everything that proves: text encoder, denoiser per step, decoder, encoder on the picture.

The golden request of a build, the references of TensorRT plans, the trajectories of int8 and the GPU acceptance all take it.
Every stage gets its inputs by the names that it declares, so that a stage variant with fewer inputs needs nothing here.
The walk knows no backend: its caller runs the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Session
from sdturbo.bundle.description import NOISES, ScheduleRow, Size, Stage, rows_of
from sdturbo.noise import randn

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Visit:
    """A stage on the way, with its inputs by name and its output."""

    stage: str
    inputs: Arrays
    output: Array


@dataclass(slots=True)
class Walk:
    """A request on its way. Image i of the batch takes seeds[i].

    input_ids: int64 (B, 77). outputs: the last output of each stage.
    """

    stages: Mapping[str, Stage]
    schedule: Sequence[ScheduleRow]
    num_inference_steps: int
    input_ids: NDArray[np.int64]
    seeds: Sequence[int]
    outputs: dict[str, Array] = field(default_factory=dict[str, Array])

    @property
    def size(self) -> Size:
        """Height and width of the picture in pixels."""
        _, height, width, _ = self.stages["decoder"].outputs[0].shape_at(1)
        return height, width

    @property
    def rows(self) -> range:
        """The rows of the schedule that the denoiser takes, one per step."""
        return rows_of(self.schedule, self.num_inference_steps)

    def inputs(self, stage: str, row: int | None = None) -> Arrays:
        """The stage's inputs by name, from the outputs of the stages before it. row: the request's first by default."""
        row = self.rows[0] if row is None else row
        return {spec.name: self._tensor(stage, spec.name, row) for spec in self.stages[stage].inputs}

    def visits(self, run: Callable[[str, Arrays], Array], until: str = "encoder") -> Iterator[Visit]:
        """Each stage in the order of the request up to `until`, run by `run`, which takes a stage's name and its inputs.

        The encoder comes last: it is shown the picture.
        """
        first = self.rows[0]
        denoising = [("denoiser", row) for row in self.rows]
        for stage, row in [("text_encoder", first), *denoising, ("decoder", first), ("encoder", first)]:
            inputs = self.inputs(stage, row)
            self.outputs[stage] = run(stage, inputs)
            yield Visit(stage, inputs, self.outputs[stage])
            if stage == until:
                return

    def picture(self, i: int = 0) -> NDArray[np.uint8]:
        """Image i of the batch, uint8 (H, W, 3), also from float32 values (B, 3, H, W) of the decoder before rounding."""
        values = self.outputs["decoder"][i]
        return values if values.dtype == np.uint8 else np.rint(values).astype(np.uint8).transpose(1, 2, 0)

    def _tensor(self, stage: str, name: str, row: int) -> Array:
        if name == "input_ids":
            return self.input_ids
        if name == "step":
            return np.array(row, np.int64)
        if name == "prompt_embeds":
            return self.outputs["text_encoder"]
        if name == "image":
            return np.stack([self.picture(i) for i in range(len(self.seeds))])
        if name in NOISES:
            names = [spec.name for spec in self.stages[stage].inputs if spec.name in NOISES]
            return randn(self.seeds, self._latents_shape, draws=len(names))[names.index(name)]
        if name == "latents" and stage == "denoiser" and row == self.rows[0]:
            return randn(self.seeds, self._latents_shape)[0] * np.float32(self.schedule[row].sigma)
        return self.outputs["denoiser"]

    @property
    def _latents_shape(self) -> tuple[int, ...]:
        return self.stages["denoiser"].outputs[0].shape_at(1)


def run_of(sessions: Mapping[str, Session]) -> Callable[[str, Arrays], Array]:
    """The `run` of `Walk.visits` that runs each stage in its session."""

    def run(stage: str, inputs: Arrays) -> Array:
        (output,) = sessions[stage].run(inputs).values()
        return output

    return run
