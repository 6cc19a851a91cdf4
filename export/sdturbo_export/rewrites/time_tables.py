"""Everything in the UNet that depends on the timestep alone, evaluated once for each row of the schedule.

emb(t) = MLP(sinusoid(t)), where MLP is two linear layers (multilayer perceptron). Every residual block adds
W_i·silu(emb(t)) + b_i. Over ten rows that is one table float32 (10, ΣC_i). A step gathers its row and each block slices its
part. The MLP and 22 products go.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from sdturbo_export.rewrites import Rewrite


class _Row(nn.Module):
    """In the place of the time MLP: step () -> the table's row (1, ΣC_i)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Buffer(table)

    def forward(self, step: torch.Tensor, condition: None = None) -> torch.Tensor:
        return self.table[step.reshape(1)]


class _Part(nn.Module):
    """In the place of a block's time projection: row (1, ΣC_i) -> its part (1, C_i)."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return row[:, self.start : self.end]


@torch.no_grad()
def tabulate_time(stage: Any) -> None:
    """Change the stage's UNet in place so that its `timestep` argument is the row of the schedule, `step` itself.

    The buffer `timesteps` of the stage's module `timestep` holds the timestep of each row.
    """
    unet = stage.unet
    blocks: list[Any] = [block for block in unet.modules() if isinstance(block, ResnetBlock2D)]
    emb = unet.time_embedding(unet.time_proj(stage.timestep.get_buffer("timesteps")).to(unet.dtype))
    parts = [block.time_emb_proj(block.nonlinearity(emb)) for block in blocks]
    start = 0
    for block, part in zip(blocks, parts, strict=True):
        block.time_emb_proj = _Part(start, start + part.shape[1])
        block.skip_time_act = True  # the table holds the projection of silu(emb)
        start += part.shape[1]
    unet.time_embedding = _Row(torch.cat(parts, dim=1))
    unet.get_time_embed = lambda sample, timestep: timestep
    stage.timestep = nn.Identity()


REWRITE = Rewrite(("denoiser",), tabulate_time)
