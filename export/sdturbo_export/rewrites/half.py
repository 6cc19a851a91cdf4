"""A stage in float16 with float32 islands, spelled out in modules and casts, because strongly typed engines add none.

float16: weights and activations. float32: LayerNorm, softmax, and the stage's own arithmetic around the model (schedule,
pixels, posterior). GroupNorm is one node between float16 tensors. It reduces in float32 inside (ONNX GroupNormalization,
stash_type), and TensorRT makes one kernel of it and the SiLU after it. With casts around it, float32 went through memory.
Attention is softmax((s·Q)Kᵀ)·V. It is scaled before the product, so that no score overflows that the softmax would have
brought back. For heads of 64 numbers s is 1/8, so scaling rounds nothing. TensorRT fuses this form (its guide, "Fused
Attention"), and reads K where it lies. README.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Half(nn.Module):
    """The stage with its components in float16. Inputs and outputs keep their types. Changes `stage` in place."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        for component in stage.children():
            _halve(component)
        self.stage: Any = stage  # the decoder alone has `pixels`

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        with _ExactSoftmax():
            return self.stage(*inputs)

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's values before rounding."""
        with _ExactSoftmax():
            return self.stage.pixels(latents)


class _LayerNorm(nn.Module):
    """A LayerNorm in float32 between float16 tensors. The last norm of a stage leaves its output in float32."""

    def __init__(self, norm: nn.LayerNorm, *, last: bool) -> None:
        super().__init__()
        self.last = last
        for name, weight in list(norm.named_parameters()):
            delattr(norm, name)  # buffers, for diffusers reads a module's dtype off its parameters
            norm.register_buffer(name, weight.detach())
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.float())
        return y if self.last else y.to(x.dtype)


class _PixelNorm(nn.Module):
    """The GroupNorm before the attention of an autoencoder, of pixels (B, C, H·W), as one of a picture of one row.

    TensorRT has its fused kernel for four dimensions alone.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.unsqueeze(2)).squeeze(2)


class _ExactSoftmax(TorchFunctionMode):
    """Attention written out wherever a model asks torch for it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = ((query * factor) @ key.transpose(-2, -1)).float()
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
        scores = scores + attn_mask.float()
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _halve(module: nn.Module) -> None:
    """Turn every floating tensor below `module` to float16, except the weights of LayerNorms."""
    for name, child in module.named_children():
        if isinstance(child, nn.LayerNorm):
            setattr(module, name, _LayerNorm(child, last=name == "final_layer_norm"))
            continue
        _halve(child)
        if isinstance(child, nn.GroupNorm) and name == "group_norm":  # of diffusers' Attention
            setattr(module, name, _PixelNorm(child))
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().half(), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_floating_point():
            setattr(module, name, buffer.half())
