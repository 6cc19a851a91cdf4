"""Training of UNet and text encoder: `python -m training.tiny.train_unet RUN --minutes 150`, again to go on.

One step from pure noise is a regression. The latents are a function of prompt and noise, because each render's layout is
put into the noise. Every render serves without end, for the noise around its layout is drawn anew each time.

Later rows of the schedule are learnt from start pictures under noise, whose forms are kept (`starting`), from the prompt's own
render under noise, and near the end from the model's own drafts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdturbo.bundle.description import ScheduleRow
from training.tiny.hardware import DEVICE, LARGER, PARTS
from training.tiny.latents import LatentFile
from training.tiny.model import Model, load_vae, new_model, take_text_encoder, take_unet
from training.tiny.pairs import Batch, Pairs
from training.tiny.prompts import Prompts
from training.tiny.renders import Renders
from training.tiny.sampler import denoised_rows, schedule_rows, steps
from training.tiny.sheets import Sheets, error
from training.tiny.starting import draw_starts, followed
from training.tiny.starts import Starts
from training.tiny.training import Run

BATCH, LESSON = 8, 4  # pictures per step on a CPU, and per lesson
PICTURES, START_PICTURES = 1344, 2400  # four of each combination
FIRST = ((0.5, 0.8), (1.0, 0.4))  # until which share of the time, which share of the lessons is from pure noise
OWN_FROM, OWN = 0.6, 0.15  # of the time, and of the lessons: from the model's own draft
RENDERS = 0.1  # of the lessons: from the prompt's own render under noise. The others are from start pictures.
KEEP = 0.995  # of the mean weights, in each step
MUON_LR, ADAMW_LR = 0.02, 2e-3
FURTHER = 0.1  # of these rates for weights that are trained further: more would undo what larger batches taught
LOOK_SECONDS = 300
ROWS = schedule_rows()
LATER = tuple(row for row in ROWS if row.index > 0)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch for one row of the schedule.

    It goes on from pure noise after the rows `before`, from start pictures `start` under noise, or, without either, from the
    batch's own pictures under noise.
    """

    batch: Batch
    row: ScheduleRow
    before: tuple[ScheduleRow, ...] | None = None
    start: Tensor | None = None


def lesson(batch: Batch, starts: NDArray[np.float16], progress: float, rng: np.random.Generator) -> Lesson:
    """A lesson of the kind that is due at this share of the time."""
    first = next(share for until, share in FIRST if progress <= until)
    own = OWN if progress >= OWN_FROM else 0.0
    kind = rng.random()
    if kind < first:
        return Lesson(batch, ROWS[0], before=())
    row = LATER[rng.integers(len(LATER))]
    if kind < first + own:
        before = (r for r in ROWS if r.num_inference_steps == row.num_inference_steps and r.index < row.index)
        return Lesson(batch, row, before=tuple(before))
    if kind < first + own + RENDERS:
        return Lesson(batch, row)
    return Lesson(batch, row, start=draw_starts(starts, len(batch.latents), rng).to(batch.latents.device))


def loss(model: Model, lessons: Sequence[Lesson]) -> Tensor:
    """The error of x0, over lessons of any kinds at once."""
    embeds = model.embeds(torch.cat([lesson.batch.ids for lesson in lessons]))
    words = embeds.split([len(lesson.batch.ids) for lesson in lessons])
    tasks = [task(model, lesson, part) for lesson, part in zip(lessons, words, strict=True)]
    x, target = (torch.cat(tensors) for tensors in zip(*tasks, strict=True))
    rows = [lesson.row for lesson in lessons for _ in lesson.batch.ids]
    weights = torch.cat([lesson.batch.weights for lesson in lessons])
    return error(denoised_rows(model.unet, x, embeds, rows), target, weights)


def task(model: Model, lesson: Lesson, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Latents under noise, and those that the model is to see in them, both (n, 4, h, w). embeds: of the batch's prompts."""
    batch, row = lesson.batch, lesson.row
    if lesson.before is not None:
        x = steps(model.unet, batch.noise, embeds, lesson.before) if lesson.before else batch.noise * row.sigma
        return x, batch.latents
    start = batch.latents if lesson.start is None else lesson.start
    return start + row.sigma * batch.noise, followed(start, batch.latents, batch.subjects, row.sigma)


def train(folder: Path, minutes: float, weights: Path | None = None) -> Path:
    """Train for `minutes` in all in `folder`/unet, and go on with its state if there is one.

    weights: a checkpoint to go on from. Its text encoder is taken as it is, its UNet is trained further, with the lessons that
    come last, and the embeddings of plurals are learnt.
    Returns the file of the finished weights. `folder` holds the results of train_vae. Renders and their latents take more time,
    once.
    """
    vae, prompts = load_vae(folder / "vae" / "vae.pt", DEVICE), Prompts()
    renders, latents = Renders(folder / "train.rgb"), LatentFile(folder / "latents.f16")
    renders.paint_by_all(PICTURES)
    latents.encode(vae, renders, PICTURES)
    others = LatentFile(folder / "starts.f16")
    others.encode(vae, Starts(), START_PICTURES)
    starts = np.concatenate([latents.read(), others.read()])
    pairs = Pairs(renders, latents, prompts)
    sheets = Sheets(vae, prompts, Renders(folder / "held_out.rgb", held_out=True))
    torch.manual_seed(0)
    model = new_model(prompts.known)
    if weights is not None:
        take_text_encoder(model, weights, torch.from_numpy(prompts.plurals()))
        take_unet(model, weights)
    last, rate = (0.0, 1.0) if weights is None else (max(OWN_FROM, FIRST[0][0]), FURTHER)
    run = Run(folder / "unet", model, 60 * minutes, muon_lr=rate * MUON_LR, adamw_lr=rate * ADAMW_LR, keep=KEEP)
    while not run.clock.over:
        batches = [pairs.draw(LESSON, run.rng).to(DEVICE) for _ in range(LARGER * BATCH // LESSON)]
        progress = max(last, run.clock.progress)
        lessons = [lesson(batch, starts, progress, run.rng) for batch in batches]
        run.step(partial(loss, model), [lessons[i::PARTS] for i in range(PARTS)])
        if run.clock.passed(LOOK_SECONDS):
            sheets.draw(run, step_counts=(1, 2, 4) if run.clock.progress >= OWN_FROM else (1,))
    return run.finish("model.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the whole training")
    parser.add_argument("--minutes", type=float, default=150)
    parser.add_argument("--weights", type=Path, help="a checkpoint to go on from")
    options = parser.parse_args(arguments)
    print(train(options.run, options.minutes, options.weights))


if __name__ == "__main__":
    main()
