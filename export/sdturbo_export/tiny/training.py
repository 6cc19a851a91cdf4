"""What both trainings share: a clock that ends on time, averaged weights, states on disk, a log of lines."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WARM_UP = 50  # steps
DECAY = 0.6  # of the time, at its end


@dataclass(slots=True)
class Clock:
    """Steps and seconds of a training across its interruptions. Progress is seconds of the budget, 0 … 1."""

    budget: float
    step: int = 0
    seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """One step is over."""
        now = time.monotonic()
        self.step, self.seconds, self._last = self.step + 1, self.seconds + now - self._last, now

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / self.budget)

    @property
    def share(self) -> float:
        """Of the full learning rate: a short rise, a plateau, a straight fall to zero."""
        return min(1.0, (self.step + 1) / WARM_UP, (1 - self.progress) / DECAY)


def set_learning_rates(optimizers: Iterable[Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group.setdefault("full_lr", group["lr"])


def averaged(module: nn.Module) -> nn.Module:
    """A copy to keep the exponential mean of the weights in."""
    return copy.deepcopy(module).eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def average(mean: nn.Module, module: nn.Module, keep: float, step: int) -> None:
    """mean ← k·mean + (1 - k)·weights, with k smaller at first, so that the start is forgotten."""
    keep = min(keep, (1 + step) / (10 + step))
    pairs = [(m, p) for m, p in zip(mean.parameters(), module.parameters(), strict=True) if p.requires_grad]
    torch._foreach_lerp_([m for m, _ in pairs], [p for _, p in pairs], 1 - keep)


def arithmetic() -> AbstractContextManager[Any]:
    """bfloat16 products where the CPU has instructions for them, float32 elsewhere."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


def save_state(path: Path, state: Mapping[str, Any], clock: Clock, rng: np.random.Generator) -> None:
    """Write everything that the next step depends on; an interruption leaves the state before."""
    whole = {"state": dict(state), "step": clock.step, "seconds": clock.seconds}
    whole |= {"torch_rng": torch.get_rng_state(), "numpy_rng": rng.bit_generator.state}
    partial = path.with_suffix(".partial")
    torch.save(whole, partial)
    os.replace(partial, path)


def load_state(path: Path, clock: Clock, rng: np.random.Generator) -> dict[str, Any]:
    """The state that was saved; sets the clock and both random generators to where they were."""
    whole = torch.load(path, weights_only=True)
    clock.step, clock.seconds = whole["step"], whole["seconds"]
    torch.set_rng_state(whole["torch_rng"])
    rng.bit_generator.state = whole["numpy_rng"]
    return whole["state"]


def log_line(path: Path, **values: float) -> None:
    """Append one JSON object; printed too."""
    line = json.dumps({name: round(value, 5) for name, value in values.items()})
    with path.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def log_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in channels_last, -1 … 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pictures(x: Tensor) -> np.ndarray:
    """(n, 3, h, w), -1 … 1 -> uint8 (n, h, w, 3), rounded as the engine rounds."""
    levels = (x.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between two uint8 pictures."""
    error = np.square(a.astype(np.float32) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
