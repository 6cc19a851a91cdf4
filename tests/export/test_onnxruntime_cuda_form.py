"""The form for ONNX Runtime's CUDA provider: what is fused in it, and that it computes what the plain graph does."""

import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from contrib_definitions import DOMAIN, with_definitions
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from benchmarks.gpu.runs import random_inputs
from sdturbo.bundle.description import ONNXRUNTIME_CUDA, PLAIN, STAGES
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.graphs.onnxruntime_cuda import write_form
from sdturbo_export.proof.distance import relative_l2
from sdturbo_export.rewrites.half import Half

# those of our graphs that the provider has kernels for in float16, by ONNX Runtime's docs/OperatorKernels.md (1.31)
CUDA_KERNELS = {
    *(
        "Add",
        "BiasGelu",
        "BiasSplitGelu",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "ConvTranspose",
        "Div",
        "Exp",
        "Expand",
    ),
    *("Gather", "GatherND", "Gelu", "GroupNorm", "InstanceNormalization", "LayerNormalization", "MatMul", "Mul"),
    *(
        "MultiHeadAttention",
        "Reshape",
        "Resize",
        "Round",
        "Sigmoid",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "Slice",
    ),
    *("Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
}


def own_operators(graph):
    """How often each operator of ONNX Runtime's own is in the graph, and the biases that convolutions keep."""
    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    counted = Counter(node.op_type for node in nodes if node.domain == DOMAIN)
    return counted, sum("Conv" in node.op_type and len(node.input) == 3 for node in nodes)


def distance(plain, form, inputs, folder):
    """From the plain graph to the form, whose operators are replaced by their definitions."""
    defined = folder / "defined.onnx"
    for weights in plain.parent.glob("*.weights"):
        if weights.parent != folder:
            shutil.copyfile(weights, folder / weights.name)
    onnx.save(with_definitions(onnx.load(str(form), load_external_data=False)), str(defined))
    expected, computed = (onnxruntime.InferenceSession(str(path)).run(None, inputs)[0] for path in (plain, defined))
    assert np.isfinite(computed).all()
    return relative_l2(computed, expected.astype(np.float64))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_what_its_plain_graph_does(half_bundle, stage, tmp_path):
    """Both round to float16, at other places. The blocks below have two batch sizes."""
    plain, form = (half_bundle.graph(stage, 1, form=name) for name in (PLAIN, ONNXRUNTIME_CUDA))
    inputs = random_inputs(half_bundle.stages[stage], 1)
    assert distance(plain, form, inputs, tmp_path) < 3e-3


def test_what_is_fused_in_small(half_bundle):
    counted = {stage: own_operators(half_bundle.graph(stage, 1, form=ONNXRUNTIME_CUDA))[0] for stage in STAGES}
    assert counted["text_encoder"] == {"MultiHeadAttention": 2, "SkipLayerNormalization": 3, "BiasGelu": 2}
    assert counted["denoiser"]["MultiHeadAttention"] == 20
    assert counted["denoiser"]["SkipLayerNormalization"] == 20
    assert counted["decoder"]["MultiHeadAttention"] == counted["encoder"]["MultiHeadAttention"] == 1


def test_the_form_reads_the_weights_of_the_plain_graph_and_is_small(half_bundle):
    folder = half_bundle.path / "onnx"
    assert {path.name for path in folder.glob("*.weights")} == {f"{stage}.weights" for stage in STAGES}
    for form in folder.glob(f"*.{ONNXRUNTIME_CUDA}.onnx"):
        plain = folder / f"{form.name.removesuffix(f'.{ONNXRUNTIME_CUDA}.onnx')}.onnx"
        assert form.stat().st_size < plain.stat().st_size + 50_000
        assert str(folder).encode() not in form.read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_every_operator_has_a_kernel_of_the_cuda_provider(half_bundle, stage):
    """A node without one runs on the CPU, and no CUDA graph holds its stage. GroupNormalization was one."""
    nodes = onnx.load(str(half_bundle.graph(stage, 1, form=ONNXRUNTIME_CUDA)), load_external_data=False).graph.node
    assert {node.op_type for node in nodes} <= CUDA_KERNELS


def test_a_float32_bundle_has_no_such_form(small_bundle, half_bundle):
    assert half_bundle.has_form(ONNXRUNTIME_CUDA)
    assert not small_bundle.has_form(ONNXRUNTIME_CUDA)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_is_defined_as_onnx_runtime_computes_it(causal):
    # its own kernel, which a CPU has in float32
    attributes = {"num_heads": 3, "scale": 0.3, "unidirectional": causal}
    assert both_ways("MultiHeadAttention", [(2, 5, 24), (2, 5, 24), (2, 5, 24)], 1, **attributes) < 1e-6


def test_sums_and_gates_are_defined_as_onnx_runtime_computes_them():
    shapes = [(2, 5, 24), (2, 5, 24), (24,), (24,), (24,)]
    assert both_ways("SkipLayerNormalization", shapes, 4, epsilon=1e-3) < 1e-6
    assert both_ways("BiasGelu", [(2, 5, 24), (24,)], 1) < 1e-6


def both_ways(operator, shapes, count, **attributes):
    # the distance of one node by our definition to ONNX Runtime's kernel, over its first and its last output
    inputs = {f"x{i}": np.random.default_rng(i).standard_normal(shape, np.float32) for i, shape in enumerate(shapes)}
    names = ["first", *[""] * (count - 2), *["last"] * (count > 1)]
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), names, domain=DOMAIN, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind, array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shapes[0]) for name in names if name],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    theirs = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)
    ours = onnxruntime.InferenceSession(with_definitions(model).SerializeToString()).run(None, inputs)
    return max(relative_l2(*pair) for pair in zip(ours, theirs, strict=True))


class Block(nn.Module):
    """A transformer block of SD-Turbo's first level: 320 channels, heads of 64, a gated unit of 2,560."""

    def __init__(self):
        super().__init__()
        self.block = BasicTransformerBlock(320, 5, 64, cross_attention_dim=64, activation_fn="geglu")

    def forward(self, tokens, embeds):
        return self.block(tokens.half(), encoder_hidden_states=embeds.half()).float()


class Residual(nn.Module):
    """A convolution and a residual block after it, with or without an embedding of the time."""

    def __init__(self, channels, *, timed):
        super().__init__()
        self.first = nn.Conv2d(4, channels, 3, padding=1)
        self.block = ResnetBlock2D(
            in_channels=channels, out_channels=2 * channels, temb_channels=8 if timed else None, groups=8
        )
        self.timed = timed

    def forward(self, x, temb):
        y = self.block(self.first(x.half()), temb.half() if self.timed else None)
        return (y + 0 * temb.sum()).float()


def formed(module, inputs, folder):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    with WeightFile(folder / "block.weights") as weights:
        onnx_from_torch(Half(module), inputs, ["output"], folder / "block.onnx", weights, pack=False, opset=21)
    write_form(folder / "block.onnx", folder / "form.onnx")
    return folder / "block.onnx", folder / "form.onnx", {name: tensor.numpy() for name, tensor in inputs.items()}


def test_a_transformer_block_of_sd_turbo_is_fused_whole(tmp_path):
    inputs = {"tokens": torch.randn(2, 16, 320), "embeds": torch.randn(2, 7, 64)}
    plain, form, arrays = formed(Block(), inputs, tmp_path)
    fused = {"MultiHeadAttention": 2, "SkipLayerNormalization": 2, "BiasSplitGelu": 1}
    assert own_operators(form)[0] == fused
    assert distance(plain, form, arrays, tmp_path) < 2e-3


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("timed", [False, True])
def test_norms_add_the_biases_of_convolutions(timed, batch_size, tmp_path):
    inputs = {"x": torch.randn(batch_size, 4, 8, 8), "temb": torch.randn(1, 8)}
    plain, form, arrays = formed(Residual(32, timed=timed), inputs, tmp_path)
    counted, kept = own_operators(form)
    assert counted == {"SkipGroupNorm": 2}
    assert kept == 2  # of the second convolution and of the shortcut
    assert distance(plain, form, arrays, tmp_path) < 2e-3


def test_channels_that_the_kernel_has_no_pairs_of_are_spelled_out(tmp_path):
    inputs = {"x": torch.randn(1, 4, 8, 8), "temb": torch.randn(1, 8)}
    plain, form, arrays = formed(Residual(8, timed=False), inputs, tmp_path)
    assert own_operators(form) == ({"SkipGroupNorm": 1}, 3)
    assert distance(plain, form, arrays, tmp_path) < 2e-3
