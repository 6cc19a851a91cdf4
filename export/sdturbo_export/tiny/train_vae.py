"""Training of the autoencoder: `python -m sdturbo_export.tiny.train_vae OUT --minutes 35`, again to go on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from sdturbo_export.tiny import training
from sdturbo_export.tiny.configs import tiny_configs
from sdturbo_export.tiny.latent_scale import fold_latent_scale, latent_statistics
from sdturbo_export.tiny.optimizer import optimizers
from sdturbo_export.tiny.render import sheet
from sdturbo_export.tiny.renders import SIZE, Renders

CROP, BATCH = 256, 4
WHOLE_FROM = 0.8  # of the time: whole pictures, whose norms the engine's pictures share
KEEP = 0.99  # of the mean weights, a step
KL_WEIGHT = 1e-4
MUON_LR, ADAMW_LR = 0.01, 2e-3
EVERY = {"log": 20, "look": 400}  # steps
SAVE_SECONDS = 60
TRAINING_PICTURES, TEST_PICTURES = 1024, 24
DARK = 2  # times as many night scenes: small errors show there


def new_vae() -> AutoencoderKL:
    """Random weights; the posterior starts narrow, so that the decoder sees the picture through little noise."""
    vae = AutoencoderKL.from_config(tiny_configs()["vae"])
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -5
    return vae.to(memory_format=torch.channels_last)


def loss(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, mean squared error) on pictures (n, 3, h, w), -1 … 1.

    L1 and squared error of the pixels; L1 of means of 8 x 8, which is what flat areas look like; KL a latent.
    """
    posterior = vae.encode(x).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - x
    squared = error.square().mean()
    flat = avg_pool2d(error, 8).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + 4 * squared + flat + KL_WEIGHT * divergence, squared


def batch(renders: Renders, rng: np.random.Generator, progress: float) -> NDArray[np.uint8]:
    """Crops (4, 256, 256, 3) of random pictures; whole pictures (1, 512, 512, 3) in the end. Half are mirrored."""
    whole = progress >= WHOLE_FROM
    pictures = []
    for _ in range(1 if whole else BATCH):
        picture = renders.picture(_pick(renders, rng))
        if not whole:
            y, x = rng.integers(0, SIZE - CROP + 1, 2)
            picture = picture[y : y + CROP, x : x + CROP]
        pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
    return np.stack(pictures)


def _pick(renders: Renders, rng: np.random.Generator) -> int:
    """A picture's number; where the first of DARK draws is not of the night, the next may be."""
    for _ in range(DARK):
        number = int(rng.integers(len(renders)))
        if renders.scene(number).scene == "night":
            break
    return number


def train(out: Path, minutes: float) -> Path:
    """Train for `minutes` in all, resuming what `out` holds; returns the file of the finished weights."""
    out.mkdir(parents=True, exist_ok=True)
    pictures, tests = Renders(out.parent / "train.rgb"), Renders(out.parent / "held_out.rgb", held_out=True)
    tests.paint(TEST_PICTURES)
    pictures.paint(64)
    painter = pictures.paint_in_background(TRAINING_PICTURES)
    torch.manual_seed(0)
    vae, rng, clock = new_vae(), np.random.default_rng(0), training.Clock(60 * minutes)
    mean, both = training.averaged(vae), optimizers(vae, muon_lr=MUON_LR, adamw_lr=ADAMW_LR)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"vae": vae, "mean": mean, "muon": both[0], "adamw": both[1]}
    state = out / "state.pt"
    if state.exists():
        saved = training.load_state(state, clock, rng)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    saved_at, losses = clock.seconds, []
    while clock.progress < 1:
        training.set_learning_rates(both, clock.share)
        x = training.to_tensor(batch(pictures, rng, clock.progress))
        with training.arithmetic():
            value, squared = loss(vae, x)
        vae.zero_grad()
        value.backward()
        for optimizer in both:
            optimizer.step()
        training.average(mean, vae, KEEP, clock.step)
        clock.tick()
        losses.append((value.item(), squared.item()))
        if clock.step % EVERY["log"] == 0:
            mean_loss, error = np.mean(losses, axis=0).tolist()
            decibels = 10 * np.log10(4 / error)
            training.log_line(out / "log.jsonl", step=clock.step, seconds=clock.seconds, loss=mean_loss, psnr=decibels)
            losses.clear()
        if clock.step % EVERY["look"] == 0:
            look(mean, tests, out, clock, 6)
        if clock.seconds - saved_at > SAVE_SECONDS or clock.progress == 1:
            saved_at = clock.seconds
            training.save_state(state, {name: part.state_dict() for name, part in parts.items()}, clock, rng)
    painter.terminate()
    look(mean, tests, out, clock, TEST_PICTURES)
    return finish(mean, pictures, out)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture through encoder and decoder, without the posterior's noise."""
    return training.to_pictures(vae.decode(vae.encode(training.to_tensor(picture[None])).latent_dist.mean).sample)[0]


def look(vae: AutoencoderKL, tests: Renders, out: Path, clock: training.Clock, count: int) -> None:
    """PSNR on held-out pictures, logged, and a sheet of pairs: picture, reconstruction."""
    pairs = [(tests.picture(i), reconstructed(vae, tests.picture(i))) for i in range(count)]
    decibels = [training.psnr(*pair) for pair in pairs]
    training.log_line(
        out / "tests.jsonl", step=clock.step, seconds=clock.seconds, psnr=float(np.mean(decibels)), worst=min(decibels)
    )
    sheet([picture for pair in pairs[:6] for picture in pair], 4).save(out / "look.png")


def finish(vae: AutoencoderKL, pictures: Renders, out: Path) -> Path:
    """Normalise the latents and write the weights."""
    fold_latent_scale(vae, *latent_statistics(vae, (training.to_tensor(pictures.picture(i)[None]) for i in range(96))))
    file = out / "vae.pt"
    torch.save({name: value.clone() for name, value in vae.state_dict().items()}, file)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=35)
    options = parser.parse_args(arguments)
    print(train(options.out, options.minutes))


if __name__ == "__main__":
    main()
