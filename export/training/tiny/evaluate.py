"""The quality of the embedded model, on the engine's own pictures: `python -m training.tiny.evaluate OUT`.

The autoencoder is measured on held-out renders. Held-out combinations are drawn at 1, 2 and 4 steps and judged by a
classifier that has seen renders only. The classifier itself is measured on renders of the same combinations. Then come fine
detail, prompts with words that it was not taught, the difference of two seeds, start pictures, and contact sheets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from sdturbo import Pipeline
from sdturbo.bundle import EMBEDDED
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny.captions import caption, plain_caption
from training.tiny.classifier import Classifier, examples, train_classifier
from training.tiny.following import VISIBLE, follow
from training.tiny.pixels import psnr
from training.tiny.prompts import Prompts
from training.tiny.render import render, sheet
from training.tiny.renders import Renders, combination
from training.tiny.scenes import HELD_OUT, Combination, scene_from_seed
from training.tiny.sharpness import fine_energy
from training.tiny.train_vae import reconstructed

PER_COMBINATION = 5
STEP_COUNTS = (1, 2, 4)
KNOWN_RENDERS, KNOWN_RECONSTRUCTIONS, CLASSIFIER_STEPS = 1008, 336, 1500
JUDGED_RENDERS = 96
STRANGE_PROMPTS = 100
MISSES, EXAMPLES = 24, 8  # pictures on sheets


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of pictures, 0 … 1, in which the judge sees the prompt's words."""

    subject: float
    colour: float
    scene: float
    everything: float


def accuracy(asked: Sequence[Combination], seen: Sequence[Combination]) -> Accuracy:
    right = np.array([[a == b for a, b in zip(*pair, strict=True)] for pair in zip(asked, seen, strict=True)])
    return Accuracy(*right.mean(axis=0).tolist(), everything=float(right.all(axis=1).mean()))


def requests(per_combination: int = PER_COMBINATION) -> list[tuple[Combination, str, int]]:
    """(combination, prompt, seed) of every picture: the plain caption once, then others. No seed comes twice."""
    rng, asked = np.random.default_rng(0), []
    for what in HELD_OUT:
        texts = [plain_caption(what), *(caption(what, rng) for _ in range(per_combination - 1))]
        asked += [(what, text, 1000 + len(asked) + i) for i, text in enumerate(texts)]
    return asked


def draw(pipeline: Pipeline, asked: Sequence[tuple[Combination, str, int]], steps: int) -> NDArray[np.uint8]:
    """The engine's pictures, (n, 512, 512, 3)."""
    pictures = [
        pipeline(text, seed=seed, num_inference_steps=steps, output_type="np").images[0] for _, text, seed in asked
    ]
    return np.stack(pictures)


def visible_difference(pipeline: Pipeline, count: int = 12) -> list[float]:
    """Share of pixels that differ visibly between seeds 0 and 1, for plain captions of held-out combinations."""
    shares = []
    for what in HELD_OUT[:: len(HELD_OUT) // count]:
        a, b = (
            pipeline(plain_caption(what), seed=seed, output_type="np").images[0].astype(np.int16) for seed in (0, 1)
        )
        shares.append(float((np.abs(a - b).max(-1) > VISIBLE).mean()))
    return shares


def fine_detail(pipeline: Pipeline) -> float:
    """Median of energy above a quarter of the sampling rate, to that of the render which the same seed stands for."""
    shares = []
    for i, what in enumerate(HELD_OUT):
        picture = pipeline(plain_caption(what), seed=i, output_type="np").images[0]
        shares.append(fine_energy(picture) / fine_energy(render(scene_from_seed(what, i))))
    return float(np.median(shares))


def strange_prompts(count: int = STRANGE_PROMPTS) -> list[str]:
    """Things that it was not taught, some in a colour or in a place that it was."""
    rng, words = np.random.default_rng(3), Prompts().strange
    prompts = []
    for what in (HELD_OUT * 3)[:count]:
        thing = " ".join(str(word) for word in rng.choice(words, rng.integers(1, 4)))
        colour = f"{what.colour} " if rng.random() < 0.5 else ""
        place = plain_caption(what).partition(what.subject)[2] if rng.random() < 0.5 else ""
        prompts.append(f"a {colour}{thing}{place}")
    return prompts


def judge_for(vae: AutoencoderKL, out: Path) -> Classifier:
    """A new classifier. Its renders are kept in `out`."""
    renders = Renders(out / "train.rgb")
    renders.paint_by_all(KNOWN_RENDERS)
    return train_classifier(examples(renders, KNOWN_RENDERS, vae, KNOWN_RECONSTRUCTIONS), CLASSIFIER_STEPS)


def evaluate(checkpoint: Path, bundle: Path, out: Path) -> dict[str, object]:
    """Measure, write `results.json`, `results.md` and sheets to `out`, and return the figures.

    checkpoint: that of `bundle`. Its autoencoder is measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    vae = open_checkpoint(checkpoint).module("vae")
    assert isinstance(vae, AutoencoderKL)  # no other decoder was asked for
    vae = vae.to(memory_format=torch.channels_last)
    judge, pipeline, asked = judge_for(vae, out), Pipeline.load(bundle), requests()
    tests = Renders(out / "held_out.rgb", held_out=True)
    tests.paint(JUDGED_RENDERS)
    shown = [combination(tests.scene(i)) for i in range(JUDGED_RENDERS)]
    seen = [judge.judge(tests.picture(i)[None])[0] for i in range(JUDGED_RENDERS)]
    decibels = [psnr(tests.picture(i), reconstructed(vae, tests.picture(i))) for i in range(JUDGED_RENDERS)]
    sureness: dict[str, float] = {}
    results: dict[str, object] = {
        "autoencoder, dB": round(float(np.mean(decibels)), 2),
        "autoencoder, dB of the worst": round(min(decibels), 2),
        "judge on renders": asdict(accuracy(shown, seen)),
        "pictures": len(asked),
    }
    for steps in STEP_COUNTS:
        pictures = draw(pipeline, asked, steps)
        seen = [judge.judge(picture[None])[0] for picture in pictures]
        results[f"{steps} steps"] = asdict(accuracy([what for what, _, _ in asked], seen))
        plain = slice(0, None, PER_COMBINATION)
        sheet(_small(pictures[plain]), 8, [text for _, text, _ in asked[plain]]).save(out / f"plain-{steps}.png")
        if steps == 1:
            sheet(_small(pictures[plain][:: len(HELD_OUT) // EXAMPLES]), 4).save(out / "examples.jpg", quality=90)
        missed = [i for i, (what, _, _) in enumerate(asked) if seen[i] != what][:MISSES]
        if missed:
            labels = [f"{asked[i][1]} -> {' '.join(seen[i])}" for i in missed]
            sheet(_small(pictures[missed]), 4, labels).save(out / f"missed-{steps}.png")
        if steps == 1:
            sureness = {"known words": judge.sureness(pictures)}
    strange = strange_prompts()
    pictures = np.stack([pipeline(text, seed=i, output_type="np").images[0] for i, text in enumerate(strange)])
    results["judge's sureness of the subject"] = sureness | {"unknown words": judge.sureness(pictures)}
    sheet(_small(pictures[:MISSES]), 4, strange[:MISSES]).save(out / "strange.png")
    results["fine detail, share of the renders'"] = round(fine_detail(pipeline), 3)
    shares = visible_difference(pipeline)
    results["seeds differ"] = {"mean": float(np.mean(shares)), "least": min(shares)}
    results |= follow(pipeline, judge, tests, out)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(table(results))
    return results


def table(results: dict[str, object]) -> str:
    """Lines `| what | figure |` for the model card."""
    lines = []
    for what, figures in results.items():
        shares = figures.items() if isinstance(figures, dict) else ()
        value = ", ".join(f"{name} {_figure(share)}" for name, share in shares) or str(figures)
        lines.append(f"| {what} | {value} |")
    return "\n".join(lines) + "\n"


def _figure(value: float) -> str:
    """Shares as percentages. Decibels are larger than 1."""
    return f"{value:.1%}" if value <= 1 else f"{value:.1f}"


def _small(pictures: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return list(pictures.reshape(-1, 256, 2, 256, 2, 3).mean((2, 4), dtype=np.float32).astype(np.uint8))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for figures, sheets and renders")
    parser.add_argument("--checkpoint", type=Path, default=TINY_CHECKPOINT)
    parser.add_argument("--bundle", type=Path, default=EMBEDDED)
    options = parser.parse_args(arguments)
    print(json.dumps(evaluate(options.checkpoint, options.bundle, options.out)))


if __name__ == "__main__":
    main()
