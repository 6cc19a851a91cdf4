"""Rules for pictures: GroupNorm, with the sum before it and the SiLU after it, in one operator of ONNX Runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRuleClassBase

from sdturbo_export.graphs.reading import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DOMAIN,
    FLOAT,
    HALF,
    epsilon_of,
    node_of,
    shape_of,
)


class GroupNorm(RewriteRuleClassBase):
    """GroupNormalization of a float16 picture. silu: with the SiLU after it. skip: of a sum, which others may read too."""

    def __init__(self, name: str, *, silu: bool, skip: bool) -> None:
        super().__init__(name)
        self._silu, self._skip = silu, skip

    def pattern(self, op: Any, x: Any, skip: Any, scale: Any, bias: Any) -> Any:
        total = op.Add(x, skip) if self._skip else x
        normed = op.GroupNormalization(total, scale, bias, _allow_other_attributes=True, _outputs=["normed"])
        y = op.Mul(normed, op.Sigmoid(normed)) if self._silu else normed
        return (y, total) if self._skip else y

    def check(self, context: Any, x: ir.Value, scale: ir.Value, normed: ir.Value, **bound: Any) -> bool:
        """The kernel takes channels by twos. It adds a picture, or a number per channel."""
        shape = shape_of(x)
        if x.dtype != HALF or len(shape) != 4 or shape_of(scale)[0] // _groups(normed) % 2:
            return False
        return not self._skip or shape_of(bound["skip"]) in (shape, (1, shape[1], 1, 1))

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normed: ir.Value, **bound: Any) -> Any:
        inputs = [op.Transpose(x, perm=CHANNELS_LAST), op.Cast(scale, to=FLOAT), op.Cast(bias, to=FLOAT)]
        attributes = {
            "activation": int(self._silu),
            "channels_last": 1,
            "epsilon": epsilon_of(normed),
            "groups": _groups(normed),
            "_domain": DOMAIN,
        }
        if not self._skip:
            return op.Transpose(op.GroupNorm(*inputs, **attributes), perm=CHANNELS_FIRST)
        inputs.append(self._added(op, x, bound["skip"]))
        total = node_of(normed).inputs[0]
        if total is not None and len(total.uses()) == 1:  # the norm's alone: the sum is not written
            return op.Transpose(op.SkipGroupNorm(*inputs, **attributes), perm=CHANNELS_FIRST), x
        y, total = op.SkipGroupNorm(*inputs, **attributes, _outputs=2)
        return op.Transpose(y, perm=CHANNELS_FIRST), op.Transpose(total, perm=CHANNELS_FIRST)

    @staticmethod
    def _added(op: Any, x: ir.Value, skip: ir.Value) -> Any:
        """The picture channels last, or the numbers (B, C)."""
        if shape_of(skip) == shape_of(x):
            return op.Transpose(skip, perm=CHANNELS_LAST)
        batch_size, channels = shape_of(x)[:2]
        row = op.Reshape(skip, op.Constant(value_ints=[1, channels]))
        return row if batch_size == 1 else op.Expand(row, op.Constant(value_ints=[batch_size, channels]))


class SingleGroupNorm(RewriteRuleClassBase):
    """GroupNormalization that the library's own operator does not take, for its groups have an odd number of channels.

    The provider has no kernel for the standard operator either. It would run on the CPU, and no CUDA graph could hold it. So it
    is spelled out: (B, C, H, W) -> (B, groups, rest), InstanceNormalization, and back, then times scale, plus bias.
    """

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.GroupNormalization(x, scale, bias, _allow_other_attributes=True, _outputs=["normed"])

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normed: ir.Value) -> Any:
        shape, groups = shape_of(x), _groups(normed)
        rows = op.Reshape(x, op.Constant(value_ints=[shape[0], groups, -1]))
        ones, zeros = (ir.tensor(np.full(groups, value, np.float16)) for value in (1, 0))
        even = op.InstanceNormalization(
            rows, op.Constant(value=ones), op.Constant(value=zeros), epsilon=epsilon_of(normed)
        )
        picture = op.Reshape(even, op.Constant(value_ints=list(shape)))
        each = op.Constant(value_ints=[1, shape[1], 1, 1])
        return op.Add(op.Mul(picture, op.Reshape(scale, each)), op.Reshape(bias, each))


def _groups(normed: ir.Value) -> int:
    return node_of(normed).attributes["num_groups"].as_int()
