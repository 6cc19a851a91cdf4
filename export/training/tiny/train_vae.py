"""Training of the autoencoder: `python -m training.tiny.train_vae RUN --minutes 35`, again to go on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from training.tiny.charts import chart
from training.tiny.configs import tiny_configs
from training.tiny.latent_scale import fold_latent_scale, latent_statistics
from training.tiny.pixels import psnr, to_pictures, to_tensor
from training.tiny.render import sheet
from training.tiny.renders import SIZE, Renders
from training.tiny.training import PARTS, Run

CROP = 256
WHOLE_FROM = 0.8  # of the time: whole pictures, whose norms the engine's pictures share
KEEP = 0.99  # of the mean weights, in each step
KL_WEIGHT = 1e-4
MUON_LR, ADAMW_LR = 0.01, 2e-3
FIRST_PICTURES, PICTURES, TEST_PICTURES, SCALE_PICTURES = 64, 1024, 24, 96
NIGHT_DRAWS = 2  # pictures drawn at once, of which the first of the night is taken, for small errors show there
LOOK_SECONDS, LOOK_PICTURES = 300, 6


def new_vae() -> AutoencoderKL:
    """Random weights. The posterior starts narrow, so that the decoder sees the picture through little noise."""
    vae = AutoencoderKL.from_config(tiny_configs()["vae"])
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.get_parameter("bias")[4:] = -5
    return vae.to(memory_format=torch.channels_last)


def loss(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """L1 and squared error of pictures (n, 3, h, w), L1 of means of 8 x 8 for flat areas, and Kullback-Leibler divergence."""
    posterior = vae.encode(x).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - x
    flat = avg_pool2d(error, 8).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + 4 * error.square().mean() + flat + KL_WEIGHT * divergence


def part(renders: Renders, rng: np.random.Generator, *, whole: bool) -> Tensor:
    """A crop (1, 3, 256, 256) of a random picture, or a whole one, (1, 3, 512, 512). Half of them are mirrored."""
    picture = renders.picture(_pick(renders, rng))
    if not whole:
        y, x = rng.integers(0, SIZE - CROP + 1, 2)
        picture = picture[y : y + CROP, x : x + CROP]
    return to_tensor((picture[:, ::-1] if rng.random() < 0.5 else picture)[None])


def _pick(renders: Renders, rng: np.random.Generator) -> int:
    numbers = rng.integers(len(renders), size=NIGHT_DRAWS).tolist()
    return next((i for i in numbers if renders.scene(i).scene == "night"), numbers[0])


def train(folder: Path, minutes: float) -> Path:
    """Train for `minutes` in all in `folder`/vae, and go on with its state if there is one.

    Returns the file of the finished weights. `folder` gets the renders that the UNet's training uses too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    renders, tests = Renders(folder / "train.rgb"), Renders(folder / "held_out.rgb", held_out=True)
    tests.paint(TEST_PICTURES)
    renders.paint(FIRST_PICTURES)
    painter = renders.paint_in_background(PICTURES)
    torch.manual_seed(0)
    run = Run(folder / "vae", new_vae(), 60 * minutes, muon_lr=MUON_LR, adamw_lr=ADAMW_LR, keep=KEEP)
    while not run.clock.over:
        whole = run.clock.progress >= WHOLE_FROM
        run.step(partial(loss, run.model), [part(renders, run.rng, whole=whole) for _ in range(PARTS)])
        if run.clock.passed(LOOK_SECONDS):
            look(run, tests, TEST_PICTURES if run.clock.over else LOOK_PICTURES)
    painter.join()
    seen = (to_tensor(renders.picture(i)[None]) for i in range(SCALE_PICTURES))
    fold_latent_scale(run.mean, *latent_statistics(run.mean, seen))
    return run.finish("vae.pt")


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture through encoder and decoder, without the posterior's noise."""
    return to_pictures(vae.decode(vae.encode(to_tensor(picture[None])).latent_dist.mean).sample)[0]


def look(run: Run[AutoencoderKL], tests: Renders, count: int) -> None:
    """Log the PSNR on held-out pictures. Draw a sheet of pictures with their reconstructions, and the charts."""
    pairs = [(tests.picture(i), reconstructed(run.mean, tests.picture(i))) for i in range(count)]
    decibels = [psnr(*pair) for pair in pairs]
    run.log("tests.jsonl", psnr=float(np.mean(decibels)), worst=min(decibels))
    sheet([picture for pair in pairs[:LOOK_PICTURES] for picture in pair], 4).save(run.out / "look.png")
    chart({"loss": run.points("log.jsonl", "loss")}, logarithmic=True).save(run.out / "loss.png")
    chart({"dB, held out": run.points("tests.jsonl", "psnr")}).save(run.out / "psnr.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the whole training")
    parser.add_argument("--minutes", type=float, default=35)
    options = parser.parse_args(arguments)
    print(train(options.run, options.minutes))


if __name__ == "__main__":
    main()
