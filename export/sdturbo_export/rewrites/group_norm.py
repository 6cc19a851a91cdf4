"""GroupNorm by sums over each channel, so that the picture keeps the layout that convolutions gave it.

torch.onnx writes GroupNorm as InstanceNormalization of a picture reshaped to (B, G, C/G·H·W). A blocked layout has no such
view, so engines copy the picture to plain layout and back. Let m_g be the mean over the C/G channels of group g of the
channels' means over H and W:

    m = m_g(x)     v = v_g((x - m)²)     s = γ/√(v+ε)     y = x·s + (β - m·s)

Only tensors of C numbers are reshaped. Two passes take the place of E[x²]-m², so that the variance cancels nowhere, also where
the engine rounds to bfloat16. x - m is squared and nothing else, so that an engine need not write it to memory.
"""

from __future__ import annotations

import torch
from torch import nn

from sdturbo_export.rewrites import Rewrite, replace_modules


class ChannelGroupNorm(nn.Module):
    """(B, C, …) -> the same shape, as `norm` gives it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        column = (-1,) + (1,) * (x.dim() - 2)
        mean = self._group_mean(x)
        d = x - mean
        scale = (self._group_mean(d * d) + self.eps).rsqrt() * self.weight.view(column)
        return x * scale + (self.bias.view(column) - mean * scale)

    def _group_mean(self, x: torch.Tensor) -> torch.Tensor:
        """Mean of each channel's group: (B, C, 1, …)."""
        spatial = tuple(range(2, x.dim()))
        channels = x.mean(spatial).unflatten(1, (self.num_groups, -1))
        return channels.mean(2, keepdim=True).expand_as(channels).reshape(*x.shape[:2], *(1 for _ in spatial))


def group_norm_by_channels(stage: nn.Module) -> None:
    """Change every GroupNorm with weights below `stage` in place."""
    replace_modules(stage, nn.GroupNorm, lambda norm: ChannelGroupNorm(norm) if norm.affine else norm)


REWRITE = Rewrite(("denoiser", "decoder", "encoder"), group_norm_by_channels, precisions=("fp32",))
