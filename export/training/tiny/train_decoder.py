"""The last training: the decoder alone, on what the UNet draws: `python -m training.tiny.train_decoder RUN --minutes 20`.

The UNet's latents are a little softer than those of the encoder. The decoder learns to draw them as sharp as the renders. It
also sees the encoder's latents of renders and of start pictures, so that those come back as before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from sdturbo.files import atomic_write, sha256_file
from training.tiny.captions import plain_caption
from training.tiny.hardware import DEVICE, LARGER, PARTS
from training.tiny.latents import LatentFile
from training.tiny.layout import noise_from_layout
from training.tiny.model import Model, load_model, load_vae
from training.tiny.pixels import to_tensor
from training.tiny.prompts import Prompts
from training.tiny.renders import SIZE, Renders, combination
from training.tiny.sampler import schedule_rows, steps
from training.tiny.starts import Starts
from training.tiny.train_vae import BATCH, CROP, START_PICTURES, TEST_PICTURES, WHOLE_FROM, look, picture_loss
from training.tiny.training import Run

DRAWN, AT_ONCE = 1344, 8  # pictures that the UNet draws, four of each combination
KINDS = (0.6, 0.8)  # shares of the lessons: up to the first from the UNet's latents, up to the second from renders'
KEEP = 0.99  # of the mean weights, in each step
MUON_LR, ADAMW_LR = 0.006, 1e-3
LOOK_SECONDS = 300
SCALE = SIZE // 64  # pixels per latent


@dataclass(frozen=True, slots=True)
class Pictures:
    """Latents, float16 (n, 4, 64, 64), with the pictures that they stand for.

    drawn, own: of the first renders, by the UNet and by the encoder. start_latents: of `starts`, uint8 (n, 512, 512, 3).
    """

    renders: Renders
    drawn: NDArray[np.float16]
    own: NDArray[np.float16]
    start_latents: NDArray[np.float16]
    starts: NDArray[np.uint8]

    def draw(self, count: int, rng: np.random.Generator, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Latents (n, 4, h, w) and their pictures (n, 3, 8h, 8w), crops or whole ones."""
        latents, pictures = zip(*(self._one(rng, whole=whole) for _ in range(count)), strict=True)
        z = torch.from_numpy(np.stack(latents)).to(DEVICE).float().contiguous(memory_format=torch.channels_last)
        return z, to_tensor(np.stack(pictures), DEVICE)

    def _one(self, rng: np.random.Generator, *, whole: bool) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        kind = rng.random()
        if kind < KINDS[1]:
            latents = self.drawn if kind < KINDS[0] else self.own
            i = int(rng.integers(len(latents)))
            picture = self.renders.picture(i)
        else:
            latents, i = self.start_latents, int(rng.integers(len(self.starts)))
            picture = self.starts[i]
        z = latents[i]
        if not whole:
            side = CROP // SCALE
            y, x = rng.integers(0, z.shape[1] - side + 1, 2)
            z = z[:, y : y + side, x : x + side]
            y, x = y * SCALE, x * SCALE
            picture = picture[y : y + CROP, x : x + CROP]
        return z, picture


@torch.no_grad()
def drawn_latents(
    model: Model, renders: Renders, prompts: Prompts, file: Path, count: int = DRAWN
) -> NDArray[np.float16]:
    """The latents (count, 4, 64, 64) that the UNet draws in one step for the first renders. They are kept in `file`."""
    if not file.exists():
        rng, (row,) = np.random.default_rng(1), [row for row in schedule_rows() if row.num_inference_steps == 1]
        latents: list[Tensor] = []
        device = model.words.device
        for first in range(0, count, AT_ONCE):
            scenes = [renders.scene(i) for i in range(first, min(first + AT_ONCE, count))]
            ids = torch.from_numpy(np.stack([prompts.ids(plain_caption(combination(scene))) for scene in scenes]))
            noise = torch.from_numpy(np.stack([noise_from_layout(scene.layout, rng) for scene in scenes]))
            latents.append(steps(model.unet, noise.to(device), model.embeds(ids.to(device)), [row]))
        with atomic_write(file) as partial:
            np.save(partial, torch.cat(latents).half().cpu().numpy(), allow_pickle=False)
    return np.load(file, allow_pickle=False)


def loss(vae: AutoencoderKL, part: tuple[Tensor, Tensor]) -> Tensor:
    """The error of the decoded picture."""
    latents, picture = part
    return picture_loss(vae.decode(latents).sample.float(), picture)


def train(folder: Path, minutes: float) -> Path:
    """Train for `minutes` in all in `folder`/decoder, and go on with its state if there is one.

    Returns the file of the autoencoder with the finished decoder. `folder` holds the results of train_unet.
    """
    (folder / "decoder").mkdir(exist_ok=True)
    renders, tests = Renders(folder / "train.rgb"), Renders(folder / "held_out.rgb", held_out=True)
    weights = folder / "unet" / "model.pt"
    kept = folder / "decoder" / f"drawn-{sha256_file(weights)[:12]}.npy"  # another UNet draws others
    drawn = drawn_latents(load_model(weights).to(DEVICE), renders, Prompts(), kept)
    own, start_latents = (LatentFile(folder / name).read() for name in ("latents.f16", "starts.f16"))
    pictures = Pictures(renders, drawn, own, start_latents, Starts().pictures(START_PICTURES))
    vae = load_vae(folder / "vae" / "vae.pt").train()
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_()
    run = Run(folder / "decoder", vae, 60 * minutes, muon_lr=MUON_LR, adamw_lr=ADAMW_LR, keep=KEEP)
    while not run.clock.over:
        whole = run.clock.progress >= WHOLE_FROM
        parts = [pictures.draw(LARGER * BATCH // PARTS, run.rng, whole=whole) for _ in range(PARTS)]
        run.step(partial(loss, run.model), parts)
        if run.clock.passed(LOOK_SECONDS):
            look(run, tests, TEST_PICTURES)
    return run.finish("vae.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the whole training")
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args(arguments)
    print(train(options.run, options.minutes))


if __name__ == "__main__":
    main()
