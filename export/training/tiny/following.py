"""How the embedded model follows a start picture, and a prompt from it: the engine's own pictures of 200 cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo import Pipeline
from training.tiny.captions import plain_caption
from training.tiny.classifier import Classifier
from training.tiny.pixels import psnr
from training.tiny.render import sheet
from training.tiny.renders import Renders, combination
from training.tiny.scenes import HELD_OUT, Combination
from training.tiny.starts import Starts

CASES = 200
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
STEPS = 4
VISIBLE = 16  # levels by which a pixel differs visibly
ON_SHEET = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A start picture, two prompts that do not describe it, and a seed."""

    start: NDArray[np.uint8]
    prompts: tuple[Combination, Combination]
    seed: int


def cases(renders: Renders, count: int = CASES) -> Iterator[Case]:
    """A drawing, a gradient, a photograph-like field and a held-out render in turn. renders: of held-out scenes."""
    rng, starts = np.random.default_rng(7), Starts(held_out=True)
    for i in range(count):
        number, kind = divmod(i, 4)
        avoided = combination(renders.scene(number)).subject if kind == 3 else ""
        others = [what for what in HELD_OUT if what.subject != avoided]
        first = others[rng.integers(len(others))]
        second = [what for what in others if what.subject != first.subject and what.colour != first.colour]
        start = renders.picture(number) if kind == 3 else starts.picture(3 * number + kind)
        yield Case(start, (first, second[rng.integers(len(second))]), 5000 + i)


def follow(pipeline: Pipeline, judge: Classifier, renders: Renders, out: Path, count: int = CASES) -> dict[str, object]:
    """Figures over all cases, and the sheet `follows.jpg` of the first: start picture, then each strength."""
    renders.paint(-(-count // 4))
    decibels, found, differing, shown = [], [], [], []
    for case in cases(renders, count):
        pictures = [_draw(pipeline, case, 0, strength) for strength in STRENGTHS]
        decibels.append([psnr(picture, case.start) for picture in pictures])
        found.append([what.subject == case.prompts[0].subject for what in judge.judge(np.stack(pictures))])
        other = _draw(pipeline, case, 1, STRENGTHS[0])
        differing.append((np.abs(pictures[0].astype(np.int16) - other).max(-1) > VISIBLE).mean())
        if len(shown) < ON_SHEET * (1 + len(STRENGTHS)):
            shown += [case.start[::2, ::2], *(picture[::2, ::2] for picture in pictures)]
    sheet(shown, 1 + len(STRENGTHS)).save(out / "follows.jpg", quality=90)
    falling = np.array(decibels)
    at = [f"{strength:g}" for strength in STRENGTHS]
    return {
        "start picture, dB by strength": dict(zip(at, np.median(falling, axis=0).round(2).tolist(), strict=True)),
        "start picture, falling with strength": float((np.diff(falling, axis=1) < 0).all(axis=1).mean()),
        "subject by strength": dict(zip(at, np.mean(found, axis=0).tolist(), strict=True)),
        "two prompts at 0.25, pixels that differ": {
            "median": float(np.median(differing)),
            "share of cases with 3%": float((np.array(differing) >= 0.03).mean()),
        },
    }


def _draw(pipeline: Pipeline, case: Case, prompt: int, strength: float) -> NDArray[np.uint8]:
    result = pipeline(
        plain_caption(case.prompts[prompt]),
        Image.fromarray(case.start),
        strength=strength,
        num_inference_steps=STEPS,
        seed=case.seed,
        output_type="np",
    )
    return result.images[0]
