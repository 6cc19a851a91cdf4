"""float16 as a GPU computes it, on a CPU: each operator in float32, its result rounded to float16.

A CPU's own kernels do not show the errors of float16. torch's take minutes per convolution. ONNX Runtime's CPU provider
computes chains of float16 nodes in float32 without rounding between them, so that nothing ever overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class HalfArithmetic(TorchDispatchMode):
    """While entered, operators on float16 tensors compute in float32 (a tensor core's accumulator) and round once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        any_half = any(isinstance(leaf, Tensor) and leaf.dtype == torch.float16 for leaf in tree_leaves((args, kwargs)))
        if func is torch.ops.aten._to_copy.default or func._schema.is_mutable or not any_half:
            return func(*args, **kwargs)
        wide, named = tree_map(_cast(torch.float16, torch.float32), (args, dict(kwargs)))
        return tree_map(_cast(torch.float32, torch.float16), func(*wide, **named))


def _cast(source: torch.dtype, target: torch.dtype) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        return value.to(target) if isinstance(value, Tensor) and value.dtype == source else value

    return cast
