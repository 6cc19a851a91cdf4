"""The gated unit of the transformer blocks with two linear layers in place of one whose output is cut in two.

    [h, g] = x·W + b, y = h·gelu(g)        becomes        y = (x·W_h + b_h)·gelu(x·W_g + b_g)

The products are the same. The cut copies 2·4·C numbers per token, and engines fuse the gate into a layer that is its only
writer.
"""

from __future__ import annotations

import torch
from diffusers.models.activations import GEGLU
from torch import nn
from torch.nn import functional as F

from sdturbo_export.rewrites import Rewrite, replace_modules


class TwoLinearGEGLU(nn.Module):
    """(…, C) -> (…, 4·C), as diffusers' GEGLU gives it."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.value, self.gate = _rows(proj, 0), _rows(proj, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.value(hidden_states) * F.gelu(self.gate(hidden_states))


def two_linear_geglu(stage: nn.Module) -> None:
    """Change every GEGLU below `stage` in place."""
    replace_modules(stage, GEGLU, lambda unit: TwoLinearGEGLU(unit.proj))


def _rows(proj: nn.Linear, part: int) -> nn.Linear:
    """The first (part 0) or second (part 1) group of the layer's outputs, as a layer of its own."""
    rows = nn.Linear(proj.in_features, proj.out_features // 2, bias=proj.bias is not None, device="meta")
    for name, parameter in proj.named_parameters():
        setattr(rows, name, nn.Parameter(parameter.detach().chunk(2)[part], requires_grad=False))
    return rows


REWRITE = Rewrite(("denoiser",), two_linear_geglu, precisions=("fp32",))
