"""Training of UNet and text encoder: `python -m training.tiny.train_unet RUN --minutes 180`, again to go on.

One step from pure noise is a regression. The latents are a function of prompt and noise, because each render's layout is
put into the noise. Every render serves without end, for the noise around its layout is drawn anew each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdturbo.bundle.description import ScheduleRow
from training.tiny.latents import LatentFile
from training.tiny.model import Model, load_vae, new_model
from training.tiny.pairs import Batch, Pairs
from training.tiny.prompts import Prompts
from training.tiny.renders import Renders
from training.tiny.sampler import denoised, schedule_rows, steps
from training.tiny.sheets import Sheets, error
from training.tiny.training import PARTS, Run

BATCH = 8
PICTURES = 2016  # six of each combination
MIXED_FROM = 0.65  # of the time: steps after the first, and renders under noise, are trained too
FIRST, OWN = 0.45, 0.35  # of the mixed steps: from pure noise, from the model's own draft. The others are from renders.
KEEP = 0.998  # of the mean weights, in each step
MUON_LR, ADAMW_LR = 0.02, 2e-3
LOOK_SECONDS = 300
ROWS = schedule_rows()
LATER = tuple(row for row in ROWS if row.index > 0)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch for one row of the schedule. before: the rows that lead from pure noise to the model's own draft, from which the
    lesson goes on. None: the lesson goes on from renders under noise."""

    batch: Batch
    row: ScheduleRow
    before: tuple[ScheduleRow, ...] | None


def lesson(batch: Batch, rng: np.random.Generator, *, mixed: bool) -> Lesson:
    """The first step always, or, mixed, in a share of the lessons."""
    kind = rng.random() if mixed else 0.0
    row = ROWS[0] if kind < FIRST else LATER[rng.integers(len(LATER))]
    before = tuple(r for r in ROWS if r.num_inference_steps == row.num_inference_steps and r.index < row.index)
    return Lesson(batch, row, before if kind < FIRST + OWN else None)


def loss(model: Model, lesson: Lesson) -> Tensor:
    """The error of x0."""
    batch, row, before = lesson.batch, lesson.row, lesson.before
    embeds = model.embeds(batch.ids)
    if before is None:
        x = batch.latents + row.sigma * torch.randn_like(batch.latents)
    else:
        x = steps(model.unet, batch.noise, embeds, before) if before else batch.noise * row.sigma
    return error(denoised(model.unet, x, embeds, row), batch.latents, batch.weights)


def train(folder: Path, minutes: float) -> Path:
    """Train for `minutes` in all in `folder`/unet, and go on with its state if there is one.

    Returns the file of the finished weights. `folder` holds the results of train_vae. Renders and their latents take more time,
    once.
    """
    vae, prompts = load_vae(folder / "vae" / "vae.pt"), Prompts()
    renders, latents = Renders(folder / "train.rgb"), LatentFile(folder / "latents.f16")
    renders.paint(PICTURES)
    latents.encode(vae, renders, PICTURES)
    pairs = Pairs(renders, latents, prompts)
    sheets = Sheets(vae, prompts, Renders(folder / "held_out.rgb", held_out=True))
    torch.manual_seed(0)
    model = new_model(prompts.known)
    run = Run(folder / "unet", model, 60 * minutes, muon_lr=MUON_LR, adamw_lr=ADAMW_LR, keep=KEEP)
    while not run.clock.over:
        mixed = run.clock.progress >= MIXED_FROM
        batches = [pairs.draw(BATCH // PARTS, run.rng) for _ in range(PARTS)]
        run.step(partial(loss, model), [lesson(batch, run.rng, mixed=mixed) for batch in batches])
        if run.clock.passed(LOOK_SECONDS):
            sheets.draw(run, step_counts=(1, 2, 4) if mixed else (1,))
    return run.finish("model.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the whole training")
    parser.add_argument("--minutes", type=float, default=180)
    options = parser.parse_args(arguments)
    print(train(options.run, options.minutes))


if __name__ == "__main__":
    main()
