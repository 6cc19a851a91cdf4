"""Training of the autoencoder: `python -m training.tiny.train_vae RUN --minutes 60`, again to go on.

It learns renders, and start pictures, which no render resembles: drawings, gradients, photograph-like fields.
"""

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
from torch.nn.functional import avg_pool2d, pad

from sdturbo_export.weights.checkpoint import open_checkpoint
from training.tiny.charts import chart
from training.tiny.configs import tiny_configs
from training.tiny.hardware import DEVICE, LARGER, PARTS, device_of
from training.tiny.latent_scale import fold_latent_scale, latent_statistics
from training.tiny.pixels import psnr, to_pictures, to_tensor
from training.tiny.render import sheet
from training.tiny.renders import SIZE, Renders
from training.tiny.starts import Starts
from training.tiny.training import Run

BATCH = 2  # pictures per step on a CPU
CROP = 256
WHOLE_FROM = 0.8  # of the time: whole pictures, whose norms the engine's pictures share
KEEP = 0.99  # of the mean weights, in each step
KL_WEIGHT = 1e-4
EDGES, SHARPNESS = 1.0, 4.0  # weights in the loss
START_PICTURES, START_SHARE = 480, 0.35
MUON_LR, ADAMW_LR = 0.01, 1e-3
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


def vae_of(checkpoint: Path) -> AutoencoderKL:
    """The autoencoder of a checkpoint, in float32, to be trained."""
    vae = open_checkpoint(checkpoint).module("vae")
    assert isinstance(vae, AutoencoderKL)  # no other decoder was asked for
    return vae.float().to(memory_format=torch.channels_last).train().requires_grad_()


def loss(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """The error of pictures (n, 3, h, w) that went through the autoencoder, and Kullback-Leibler divergence."""
    posterior = vae.encode(x).latent_dist
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return picture_loss(vae.decode(posterior.sample()).sample.float(), x) + KL_WEIGHT * divergence


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 and squared error of pictures y against x, (n, 3, h, w), and L1 of means of 8 x 8 for flat areas.

    Two more parts keep what those would blur: L1 of the differences between neighbours, and of the strength of fine detail.
    """
    error = y - x
    flat = avg_pool2d(error, 8).abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    sharpness = (detail(y) - detail(x)).abs().mean()
    whole = error.abs().mean() + 4 * error.square().mean() + flat
    return whole + EDGES * edges + SHARPNESS * sharpness


def detail(x: Tensor) -> Tensor:
    """How strong fine detail is in each block of 8 x 8: the root of the mean square of second differences, per direction.

    A second difference passes 2 - 2·cos(2π·f) of a wave of f cycles per pixel: 4 of the finest, 2 at a quarter, 0.1 at 1/20.
    """
    down = pad(x.diff(n=2, dim=2), (0, 0, 1, 1))
    across = pad(x.diff(n=2, dim=3), (1, 1, 0, 0))
    return torch.cat([avg_pool2d(part.square(), 8).add(1e-6).sqrt() for part in (down, across)], dim=1)


def part(renders: Renders, starts: NDArray[np.uint8], rng: np.random.Generator, *, whole: bool) -> NDArray[np.uint8]:
    """A crop (256, 256, 3) of a random picture, or a whole one, (512, 512, 3). Half of them are mirrored."""
    start = rng.random() < START_SHARE
    picture = starts[rng.integers(len(starts))] if start else renders.picture(_pick(renders, rng))
    if not whole:
        y, x = rng.integers(0, SIZE - CROP + 1, 2)
        picture = picture[y : y + CROP, x : x + CROP]
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def _pick(renders: Renders, rng: np.random.Generator) -> int:
    numbers = rng.integers(len(renders), size=NIGHT_DRAWS).tolist()
    return next((i for i in numbers if renders.scene(i).scene == "night"), numbers[0])


def train(folder: Path, minutes: float, weights: Path | None = None) -> Path:
    """Train for `minutes` in all in `folder`/vae, and go on with its state if there is one.

    weights: a checkpoint whose autoencoder is trained further, in place of random weights. Returns the file of the finished
    weights. `folder` gets the renders that the UNet's training uses too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    renders, tests = Renders(folder / "train.rgb"), Renders(folder / "held_out.rgb", held_out=True)
    tests.paint(TEST_PICTURES)
    renders.paint(FIRST_PICTURES)
    painter = renders.paint_in_background(PICTURES)
    starts = Starts().pictures(START_PICTURES)
    torch.manual_seed(0)
    vae = new_vae() if weights is None else vae_of(weights)
    run = Run(folder / "vae", vae, 60 * minutes, muon_lr=MUON_LR, adamw_lr=ADAMW_LR, keep=KEEP)
    while not run.clock.over:
        whole = run.clock.progress >= WHOLE_FROM
        chosen = [part(renders, starts, run.rng, whole=whole) for _ in range(LARGER * BATCH)]
        run.step(partial(loss, run.model), [to_tensor(np.stack(chosen[i::PARTS]), DEVICE) for i in range(PARTS)])
        if run.clock.passed(LOOK_SECONDS):
            look(run, tests, TEST_PICTURES if run.clock.over else LOOK_PICTURES)
    painter.join()
    seen = (to_tensor(renders.picture(i)[None]) for i in range(SCALE_PICTURES))
    mean = run.mean.cpu()
    fold_latent_scale(mean, *latent_statistics(mean, seen))
    return run.finish("vae.pt")


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture through encoder and decoder, without the posterior's noise."""
    return to_pictures(vae.decode(vae.encode(to_tensor(picture[None], device_of(vae))).latent_dist.mean).sample)[0]


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
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--weights", type=Path, help="a checkpoint whose autoencoder is trained further")
    options = parser.parse_args(arguments)
    print(train(options.run, options.minutes, options.weights))


if __name__ == "__main__":
    main()
