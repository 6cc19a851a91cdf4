"""Nearest 2× upsampling and the 3×3 convolution after it, as one 2×2 convolution of the small image: 4/9 of the products.

Output row 2j+a reads rows ⌊(2j+a+k-1)/2⌋ of the small image under weights w_k, k = 0, 1, 2. So with x zero outside,

    y[2j]   =        w_0·x[j-1] + (w_1 + w_2)·x[j]
    y[2j-1] = (w_0 + w_1)·x[j-1] +        w_2·x[j]        for j = 0 … n

Both read the pair (x[j-1], x[j]). The same holds for columns: four phases, one convolution with 4·C_out outputs on the image
padded by one. Interleaving its (n+1)² outputs gives rows and columns -1 to 2n. Those at both ends are cut off. Borders are
exact, for the padding of the large image lies in the padding of the small one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeGuard

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from sdturbo_export.rewrites import Rewrite, replace_modules

MIN_CHANNELS = 32  # below, the interleave moves more than the products save
# rows: outputs 2j-1 and 2j, columns: the taps x[j-1] and x[j], depth: w_0, w_1, w_2
_TAPS = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]], dtype=torch.float64)


class PhaseUpsample(nn.Module):
    """(B, C, n, m) -> (B, C_out, 2n, 2m): the output of `conv`, 3×3 with padding 1, for x upsampled by nearest 2×."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()  # summed in float64, so that the bytes do not depend on the order
        phases = torch.einsum("aik,ockl,bjl->oabcij", _TAPS, weight.double(), _TAPS).to(weight.dtype)
        self.conv = nn.Conv2d(
            conv.in_channels, 4 * conv.out_channels, 2, padding=1, bias=conv.bias is not None, device="meta"
        )
        self.conv.weight = nn.Parameter(phases.flatten(0, 2).contiguous(), requires_grad=False)
        if conv.bias is not None:
            self.conv.bias = nn.Parameter(conv.bias.detach().repeat_interleave(4), requires_grad=False)

    def forward(self, x: torch.Tensor, output_size: None = None) -> torch.Tensor:
        if output_size is not None:
            raise ValueError(f"Got output_size {output_size}. This form of upsampling doubles the size.")
        return F.pixel_shuffle(self.conv(x), 2)[:, :, 1:-1, 1:-1]


def phase_upsampling(stage: nn.Module) -> None:
    """Change every such pair below `stage` in place."""
    replace_upsampling(stage, PhaseUpsample)


@torch.no_grad()
def replace_upsampling(stage: nn.Module, form: Callable[[nn.Conv2d], nn.Module]) -> None:
    """Put `form(conv)` in the place of every such pair below `stage`, in diffusers' Upsample2D and in sequences.

    AutoencoderTiny has the latter.
    """
    replace_modules(stage, Upsample2D, lambda pair: form(pair.conv) if _is_plain(pair) and _pays(pair.conv) else pair)
    for module in list(stage.modules()):
        if isinstance(module, nn.Sequential):
            for i, (before, conv) in enumerate(pairwise(list(module))):
                if isinstance(before, nn.Upsample) and _is_nearest(before) and _pays(conv):
                    module[i], module[i + 1] = nn.Identity(), form(conv)


def _is_nearest(module: nn.Upsample) -> bool:
    return module.mode == "nearest" and module.size is None and module.scale_factor in (2, 2.0, (2, 2), (2.0, 2.0))


def _is_plain(module: Upsample2D) -> bool:
    return module.use_conv and not module.use_conv_transpose and module.interpolate and module.norm is None


def _pays(conv: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


REWRITE = Rewrite(("denoiser", "decoder"), phase_upsampling, precisions=("fp32",))
