"""Muon for the weights of convolutions and linear layers, AdamW for everything else.

Muon: K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. torch's own takes no convolution weights. It and that
of pytorch_optimizer 4.1 iterate in bfloat16, which takes fifteen times as long as float32 on a CPU without such arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5
DECAY = 0.5
NOT_MUON = ("conv_in", "conv_out")  # first and last layers, by the last part of their names


class Muon(Optimizer):
    """Steps along the orthogonal matrix nearest to each weight's momentum, (rows, ...) flattened to (rows, columns).

    Before each step, weights lose the share DECAY·lr of themselves. Steps have a length of lr whatever the gradient's, so that
    singular values stay below about 1/DECAY. Without it they grow, and with them the numbers between the layers.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, each: Callable[..., Any] = map
    ) -> None:
        """each: `map`, or the like of an executor, which then moves weights of several shapes at a time."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._each = each

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step. Weights of one shape are treated as one batch. There is no closure to evaluate again."""
        if closure is not None:
            raise ValueError("Muon evaluates no closure. Call backward() before step().")
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
                    if not self.state[weight]:
                        self.state[weight]["momentum"] = torch.zeros_like(weight)
            list(self._each(partial(self._move, group["lr"], group["momentum"]), alike.values()))

    @torch.no_grad()
    def _move(self, lr: float, momentum: float, weights: Sequence[Tensor]) -> None:
        directions = orthogonal(torch.stack([self._nesterov(weight, momentum) for weight in weights]))
        rows, columns = directions.shape[1:]
        size = lr * max(1.0, rows / columns) ** 0.5
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - DECAY * lr).sub_(direction.reshape(weight.shape), alpha=size)

    def _nesterov(self, weight: Tensor, momentum: float) -> Tensor:
        assert weight.grad is not None  # step() passes over the others
        average = self.state[weight]["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum).flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, r, c) -> about U·Vᵀ of each U·S·Vᵀ: singular values between 0.7 and 1.2, but for those that are all but zero.

    Newton-Schulz: X ← P·X, P = a + b·G + c·G², G = X·Xᵀ. P commutes with G, so that only G, of the shorter side, is
    iterated, G ← P·G·P, and the product of all P is applied to X once.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    gram, product = x @ x.mT, eye.expand(x.shape[0], -1, -1)
    for _ in range(STEPS):
        polynomial = a * eye + b * gram + c * gram @ gram
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    x = product @ x
    return x.mT if tall else x


def optimizers(
    module: nn.Module, *, muon_lr: float = 0.02, adamw_lr: float = 2e-3, each: Callable[..., Any] = map
) -> tuple[Muon, AdamW]:
    """Both optimisers of a module. Weights of first, last, embedding and norm layers are AdamW's, the others Muon's."""
    matrices: list[Tensor] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name.rpartition(".")[2] not in NOT_MUON:
            matrices += [layer.weight] if layer.weight.requires_grad else []
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in module.parameters() if weight.requires_grad and id(weight) not in chosen]
    return Muon(matrices, lr=muon_lr, each=each), AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
