"""Denoising as the engine does it, one schedule row at a time, with gradients where training wants them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sdturbo.bundle.description import ScheduleRow
from sdturbo_export.weights.schedule import schedule_from_config
from training.tiny.configs import tiny_configs


def schedule_rows() -> tuple[ScheduleRow, ...]:
    """All rows for 1 to 4 steps."""
    return schedule_from_config(tiny_configs()["scheduler"]).rows


def denoised(unet: UNet2DConditionModel, x: Tensor, embeds: Tensor, row: ScheduleRow) -> Tensor:
    """x (n, 4, h, w) with noise of sigma -> the x0 that the network sees in it. Its input is x/√(sigma²+1)."""
    return denoised_rows(unet, x, embeds, [row] * len(x))


def denoised_rows(unet: UNet2DConditionModel, x: Tensor, embeds: Tensor, rows: Sequence[ScheduleRow]) -> Tensor:
    """The same with a row of the schedule for each of the n."""
    sigma = torch.tensor([row.sigma for row in rows], device=x.device)[:, None, None, None]
    timesteps = torch.tensor([row.timestep for row in rows], device=x.device)
    return unet(x * (sigma.square() + 1) ** -0.5, timesteps, embeds, return_dict=False)[0].float()


@torch.no_grad()
def steps(unet: UNet2DConditionModel, noise: Tensor, embeds: Tensor, rows: Iterable[ScheduleRow]) -> Tensor:
    """From pure noise (n, 4, h, w) through successive rows. After the last row of a run these are latents."""
    x = noise
    for row in rows:
        if row.index == 0:
            x = x * row.sigma
        x0 = denoised(unet, x, embeds, row)
        x = x0 + (x - x0) * (row.sigma_next / row.sigma)
    return x
