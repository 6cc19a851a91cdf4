"""Latents of zero mean and unit variance in every channel, by weights that exist anyway: quant_conv and post_quant_conv."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL
from torch import Tensor


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (4,) of each channel of the posterior's samples, over pictures (n, 3, h, w), -1 … 1."""
    count, total, squares = 0, torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for x in pictures:
        posterior = vae.encode(x).latent_dist
        mean, variance = posterior.mean.double(), posterior.var.double()
        count += mean[:, 0].numel()
        total += mean.sum((0, 2, 3))
        squares += (mean.square() + variance).sum((0, 2, 3))
    mean = total / count
    return mean.float(), (squares / count - mean.square()).sqrt().float()


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Change both 1 x 1 convolutions so that latents become (z - mean)/deviation and pictures stay the same.

    Encoder: the moments' means are scaled and shifted, the logarithms of variances lose 2·log(deviation). Decoder:
    W·(deviation·z + mean) + b = (W·diag(deviation))·z + (b + W·mean).
    """
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= deviation[:, None, None, None]
    bias = into.get_parameter("bias")
    bias[:4] = (bias[:4] - mean) / deviation
    bias[4:] -= 2 * deviation.log()
    back.get_parameter("bias").add_(back.weight[:, :, 0, 0] @ mean)
    back.weight *= deviation[None, :, None, None]
