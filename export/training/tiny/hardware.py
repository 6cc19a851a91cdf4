"""Where a training runs: on a GPU if PyTorch sees one, otherwise on the CPU's cores."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# parts of a batch. Operations this small gain little from two threads, so that each core of two has a part of its own
PARTS = 1 if GPU else 2
LARGER = 8 if GPU else 1  # times as large is a batch, at nearly the same time per step

if GPU:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


def device_of(module: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(module.parameters()).device


def arithmetic() -> AbstractContextManager[Any]:
    """bfloat16 products where a CPU has instructions for them, float32 on others, TensorFloat-32 on a GPU."""
    if GPU:
        return nullcontext()
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)
