"""The progress of the UNet's training on combinations that it never sees: contact sheets, and the error from pure noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training.tiny.captions import plain_caption
from training.tiny.charts import chart
from training.tiny.hardware import device_of
from training.tiny.layout import noise_from_layout
from training.tiny.model import Model
from training.tiny.pairs import subject_weights
from training.tiny.pixels import psnr, to_pictures, to_tensor
from training.tiny.prompts import Prompts
from training.tiny.render import sheet
from training.tiny.renders import Renders, combination
from training.tiny.sampler import schedule_rows, steps
from training.tiny.training import Run

COUNT = 16
AT_ONCE = 4


def error(x0: Tensor, latents: Tensor, weights: Tensor) -> Tensor:
    """Squared error + 0.3·L1, weighted, + 0.1·L1 of differences between neighbours, which soft edges miss.

    (n, 4, h, w) twice, (n, 1, h, w) -> ().
    """
    difference = x0 - latents
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return ((difference.square() + 0.3 * difference.abs()) * weights).mean() + 0.1 * edges


class Sheets:
    """The first held-out renders, their plain captions, and noise with their layouts: always the same."""

    def __init__(self, vae: AutoencoderKL, prompts: Prompts, renders: Renders) -> None:
        renders.paint(COUNT)
        self._vae, rng = vae, np.random.default_rng(0)
        self._pictures, scenes = zip(*((renders.picture(i), renders.scene(i)) for i in range(COUNT)), strict=True)
        self._captions = [plain_caption(combination(scene)) for scene in scenes]
        self._ids = torch.from_numpy(np.stack([prompts.ids(text) for text in self._captions])).to(device_of(vae))
        noise = torch.from_numpy(np.stack([noise_from_layout(scene.layout, rng) for scene in scenes]))
        self._noise = noise.to(device_of(vae))
        weights = torch.from_numpy(np.stack([subject_weights(scene.subject) for scene in scenes]))
        self._weights = weights.to(device_of(vae))
        with torch.no_grad():
            latents = [
                vae.encode(to_tensor(picture[None], device_of(vae))).latent_dist.mean for picture in self._pictures
            ]
        self._latents = torch.cat(latents)

    @torch.no_grad()
    def draw(self, run: Run[Model], step_counts: Sequence[int]) -> None:
        """Write `sheet-N.png` for each N of steps and the chart, and log loss and PSNR against the renders."""
        embeds, values = run.mean.embeds(self._ids), {}
        for count in step_counts:
            rows = [row for row in schedule_rows() if row.num_inference_steps == count]
            batches = zip(self._noise.split(AT_ONCE), embeds.split(AT_ONCE), strict=True)
            latents = torch.cat([steps(run.mean.unet, noise, words, rows) for noise, words in batches])
            pictures = [to_pictures(self._vae.decode(z).sample)[0] for z in latents.split(1)]
            sheet(pictures, 4, self._captions).save(run.out / f"sheet-{count}.png")
            pairs = zip(self._pictures, pictures, strict=True)
            values[f"loss-{count}"] = error(latents, self._latents, self._weights).item()
            values[f"psnr-{count}"] = float(np.mean([psnr(*pair) for pair in pairs]))
        run.log("tests.jsonl", **values)
        lines = {"loss": run.points("log.jsonl", "loss")}
        lines |= {f"held out, {n} steps": run.points("tests.jsonl", f"loss-{n}") for n in (1, 2, 4)}
        chart(lines, logarithmic=True).save(run.out / "loss.png")
