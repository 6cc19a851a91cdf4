"""Rules for tokens: attention, LayerNorm and the layers of a transformer block, each one operator of ONNX Runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRuleClassBase

from sdturbo_export.graphs.reading import DOMAIN, FLOAT, HALF, constant_of, epsilon_of, node_of, numbers_of, shape_of

LARGEST_HEAD = 256  # channels of a head, up to which attention has a fused kernel
GATED_CHANNELS = (2560, 5120, 10240)  # for which BiasSplitGelu has a kernel
HEADS_FIRST, KEYS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]


class Attention(RewriteRuleClassBase):
    """Attention as `rewrites/half.py` writes it. causal: with a causal mask, as the text encoder's.

    reshaped: transformers of some versions gives the result the shape that it has.
    """

    def __init__(self, name: str, *, causal: bool = False, reshaped: bool = False) -> None:
        super().__init__(name)
        self._causal, self._reshaped = causal, reshaped

    def pattern(
        self,
        op: Any,
        query: Any,
        key: Any,
        value: Any,
        factor: Any,
        mask: Any,
        heads: Any,
        heads_of_key: Any,
        same: Any,
        tokens: Any,
    ) -> Any:
        def split(x: Any, shape: Any, perm: list[int]) -> Any:
            return op.Transpose(op.Reshape(x, shape, _allow_other_attributes=True), perm=perm)

        scores = op.Cast(
            op.MatMul(op.Mul(split(query, heads, HEADS_FIRST), factor), split(key, heads_of_key, KEYS_LAST)), to=FLOAT
        )
        if self._causal:
            scores = op.Add(scores, mask)
        weights = op.Cast(op.Softmax(scores, axis=-1), to=HALF)
        joined = op.MatMul(weights, split(value, heads_of_key, HEADS_FIRST))
        if self._reshaped:
            joined = op.Reshape(joined, same, _allow_other_attributes=True)
        return op.Reshape(op.Transpose(joined, perm=HEADS_FIRST), tokens, _allow_other_attributes=True)

    def check(self, context: Any, query: ir.Value, factor: ir.Value, heads: ir.Value, **bound: Any) -> bool:
        if constant_of(factor) is None or constant_of(heads) is None or len(shape_of(query)) != 3:
            return False
        return _head_size(query, heads) <= LARGEST_HEAD and (not self._causal or _is_causal(bound["mask"]))

    def rewrite(
        self, op: Any, query: ir.Value, key: ir.Value, value: ir.Value, factor: ir.Value, heads: ir.Value, **_: Any
    ) -> Any:
        return op.MultiHeadAttention(
            query,
            key,
            value,
            num_heads=shape_of(query)[2] // _head_size(query, heads),
            scale=float(numbers_of(factor)),
            unidirectional=int(self._causal),
            _domain=DOMAIN,
        )


class LayerNorm(RewriteRuleClassBase):
    """LayerNorm in float32 between float16 tensors. skip: of the sum of a product, its bias and another tensor."""

    def __init__(self, name: str, *, skip: bool) -> None:
        super().__init__(name)
        self._skip = skip

    def pattern(self, op: Any, x: Any, skip: Any, linear_bias: Any, scale: Any, bias: Any) -> Any:
        total = op.Add(op.Add(x, linear_bias), skip) if self._skip else x
        normed = op.LayerNormalization(
            op.Cast(total, to=FLOAT), scale, bias, _allow_other_attributes=True, _outputs=["normed"]
        )
        normed = op.Cast(normed, to=HALF)
        return (normed, total) if self._skip else normed

    def check(self, context: Any, x: ir.Value, normed: ir.Value, **bound: Any) -> bool:
        if x.dtype != HALF or node_of(normed).attributes.get_int("axis", -1) != -1:
            return False
        if not self._skip:
            return True
        return (
            shape_of(x) == shape_of(bound["skip"])
            and len(shape_of(x)) == 3
            and len(shape_of(bound["linear_bias"])) == 1
        )

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normed: ir.Value, **bound: Any) -> Any:
        weights = [op.Cast(scale, to=HALF), op.Cast(bias, to=HALF)]
        if not self._skip:
            return op.LayerNormalization(x, *weights, axis=-1, epsilon=epsilon_of(normed), stash_type=FLOAT)
        outputs = op.SkipLayerNormalization(
            x, bound["skip"], *weights, bound["linear_bias"], epsilon=epsilon_of(normed), _outputs=4, _domain=DOMAIN
        )
        return outputs[0], outputs[3]


class GatedUnit(RewriteRuleClassBase):
    """The gated unit of a transformer block, with the bias of the layer before it."""

    def pattern(self, op: Any, product: Any, linear_bias: Any) -> Any:
        halves = op.Split(op.Add(product, linear_bias), _allow_other_attributes=True, _outputs=["value", "gate"])
        return op.Mul(halves[0], op.Gelu(halves[1], _allow_other_attributes=True, _outputs=["gelu"]))

    def check(self, context: Any, product: ir.Value, linear_bias: ir.Value, gelu: ir.Value, **_: Any) -> bool:
        return (
            _is_exact(gelu)
            and len(shape_of(product)) == 3
            and shape_of(linear_bias) in [(count,) for count in GATED_CHANNELS]
        )

    def rewrite(self, op: Any, product: ir.Value, linear_bias: ir.Value, **_: Any) -> Any:
        return op.BiasSplitGelu(product, linear_bias, _domain=DOMAIN)


class Gelu(RewriteRuleClassBase):
    """A layer's bias and the GELU after it."""

    def pattern(self, op: Any, product: Any, linear_bias: Any) -> Any:
        return op.Gelu(op.Add(product, linear_bias), _allow_other_attributes=True, _outputs=["gelu"])

    def check(self, context: Any, product: ir.Value, linear_bias: ir.Value, gelu: ir.Value, **_: Any) -> bool:
        return _is_exact(gelu) and product.dtype == HALF and len(shape_of(linear_bias)) == 1

    def rewrite(self, op: Any, product: ir.Value, linear_bias: ir.Value, **_: Any) -> Any:
        return op.BiasGelu(product, linear_bias, _domain=DOMAIN)


def _head_size(query: ir.Value, heads: ir.Value) -> int:
    """Channels per head. query: (B, tokens, channels). heads: a shape (B, tokens, heads, channels per head). One may be -1."""
    _, _, count, size = numbers_of(heads).tolist()
    return size if size > 0 else shape_of(query)[2] // count


def _is_exact(gelu: ir.Value) -> bool:
    return node_of(gelu).attributes.get_string("approximate", "none") == "none"


def _is_causal(mask: ir.Value) -> bool:
    """Whether the constant `mask` (…, n, n) is 0 up to each token itself, and hides what comes after it."""
    if constant_of(mask) is None:
        return False
    values = numbers_of(mask)
    later = np.triu(np.ones(values.shape[-2:], bool), 1)
    return bool(np.all(values[..., ~later] == 0) and np.all(values[..., later] <= np.finfo(np.float16).min))
