"""The form for ONNX Runtime's CUDA provider: a float16 graph in that library's own operators, domain `com.microsoft`.

The provider's fused kernels come from these operators alone. Of the plain graph it makes a dozen kernels per GroupNorm, and
writes the scores of attention to memory. What they compute, by ONNX Runtime's docs/ContribOperators.md:

    GroupNorm               x·s + b per group of channels, channels last, and SiLU after it. Its sums are in float32
    SkipGroupNorm           the same of x + skip + bias, and the sum
    MultiHeadAttention      softmax(s·QKᵀ)·V of Q, K, V (B, tokens, channels), with or without a causal mask
    SkipLayerNormalization  LayerNorm(x + skip + bias), and the sum
    BiasGelu                gelu(x + bias)
    BiasSplitGelu           h·gelu(g) of [h, g] = x + bias

A norm's weights keep their type in the file. Their casts are folded when the graph is loaded.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRuleSet

from sdturbo_export.graphs.conv_bias import norms_add_biases
from sdturbo_export.graphs.picture_rules import GroupNorm, SingleGroupNorm
from sdturbo_export.graphs.reading import DOMAIN
from sdturbo_export.graphs.transformer_rules import Attention, GatedUnit, Gelu, LayerNorm

# Each set goes over the whole graph. A norm stands before its SiLU, so that without one it has to wait for the next set.
RULES = (
    RewriteRuleSet(
        [
            Attention.rule("attention"),
            Attention.rule("causal attention", causal=True),
            Attention.rule("causal attention, reshaped", causal=True, reshaped=True),
            GatedUnit.rule("gated unit"),
            Gelu.rule("bias and GELU"),
            LayerNorm.rule("sum and LayerNorm", skip=True),
            LayerNorm.rule("LayerNorm", skip=False),
            GroupNorm.rule("sum, GroupNorm and SiLU", silu=True, skip=True),
            GroupNorm.rule("GroupNorm and SiLU", silu=True, skip=False),
        ],
        commute=True,
    ),
    RewriteRuleSet([GroupNorm.rule("sum and GroupNorm", silu=False, skip=True)], commute=True),
    RewriteRuleSet([GroupNorm.rule("GroupNorm", silu=False, skip=False)]),
    RewriteRuleSet([SingleGroupNorm.rule("GroupNorm of single channels")]),
)


def write_form(plain: Path, path: Path) -> None:
    """Write the form of the float16 graph `plain` to `path`, in the same folder. Both read the same weights."""
    model = ir.load(plain)
    for rules in RULES:
        rewrite(model, rules)
    norms_add_biases(model.graph)
    for node in model.graph:
        node.metadata_props.clear()  # names of rules
    model.opset_imports[DOMAIN] = 1
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
