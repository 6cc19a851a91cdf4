"""float16 graphs: what is float16 in them, what is not, and that nothing overflows in a GPU's arithmetic."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from sdturbo import BackendUnavailable, Pipeline
from sdturbo.errors import InvalidRequest
from sdturbo_export.build import build
from sdturbo_export.options import BuildOptions
from sdturbo_export.proof.half_arithmetic import HalfArithmetic
from sdturbo_export.proof.parity import half_output
from sdturbo_export.rewrites import half
from sdturbo_export.stages import stage_definitions

STAGES = ("text_encoder", "denoiser", "decoder", "encoder")

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
IN_FLOAT = {"Softmax", "LayerNormalization", "Round", "Exp"}
IN_HALF = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Resize", "Gelu", "Sigmoid", "GroupNormalization"}


def graph_of(bundle, stage):
    """(nodes, value name -> element type, names of initializers) of a stage's graph; onnx checks every node's types."""
    path = str(bundle.graph(stage, 1))
    onnx.checker.check_model(path)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return model.graph.node, types, {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("stage", STAGES)
def test_products_are_in_float16_and_islands_in_float32(half_bundle, stage):
    nodes, types, _ = graph_of(half_bundle, stage)
    seen = set()
    for node in nodes:
        kinds = {types[name] for name in (*node.input, *node.output) if types.get(name) in (FLOAT, HALF)}
        if node.op_type in IN_FLOAT:
            assert kinds <= {FLOAT}, node.name
        if node.op_type in IN_HALF and node.op_type != "Resize":  # a Resize's scales are float32
            assert kinds == {HALF}, node.name
        seen.add(node.op_type)
        if node.op_type == "GroupNormalization":  # inside, sums are in float32
            assert not any(attribute.name == "stash_type" and attribute.i != FLOAT for attribute in node.attribute)
    assert {"MatMul", "Softmax"} <= seen
    assert "InstanceNormalization" not in seen
    assert ("GroupNormalization" in seen) == (stage != "text_encoder")
    assert ("ConvTranspose" in seen) == (stage == "decoder")


@pytest.mark.parametrize("stage", STAGES)
def test_casts_stand_only_at_the_borders_of_islands(half_bundle, stage):
    nodes, _, initializers = graph_of(half_bundle, stage)
    made_by = {name: node for node in nodes for name in node.output}
    casts = [node for node in nodes if node.op_type == "Cast"]
    for cast in casts:
        assert cast.input[0] not in initializers
        assert cast.input[0] not in made_by or made_by[cast.input[0]].op_type != "Cast"
    islands = sum(node.op_type in IN_FLOAT - {"Round", "Exp"} for node in nodes)
    borders = 4  # of the stage itself: inputs, output
    assert len(casts) <= 2 * islands + borders


@pytest.mark.parametrize("stage", STAGES)
def test_tensors_at_the_borders_are_those_of_float32_graphs(half_bundle, small_bundle, stage):
    assert half_bundle.stages[stage].inputs == small_bundle.stages[stage].inputs
    assert half_bundle.stages[stage].outputs == small_bundle.stages[stage].outputs


def test_the_bundle_says_its_precision_and_keeps_the_bound(half_bundle, small_bundle):
    assert (half_bundle.precision, small_bundle.precision) == ("fp16", "fp32")
    assert half_bundle.bundle_id != small_bundle.bundle_id
    for figures in half_bundle.parity.values():
        assert 0 < figures["relative_l2"] <= figures["bound"] == 1e-2
    sizes = [
        sum(file.stat().st_size for file in (b.path / "onnx").glob("*.weights")) for b in (half_bundle, small_bundle)
    ]
    assert sizes[0] < 0.55 * sizes[1]


def test_an_unknown_precision_is_refused(small_checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match="fp32 or fp16"):
        build(small_checkpoint, tmp_path / "out", BuildOptions(precision="int4"))


def test_pictures_are_those_of_float32(half_bundle, small_bundle):
    pictures = [
        Pipeline.load(b.path, "onnxruntime", image_to_image=False)(
            "a fox", seed=3, num_inference_steps=2, output_type="np"
        )
        for b in (half_bundle, small_bundle)
    ]
    assert [one.precision for one in pictures] == ["fp16", "fp32"]
    error = np.mean((pictures[0].images.astype(float) - pictures[1].images) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


def test_float16_is_never_another_precision_under_its_name(half_bundle, small_bundle):
    with pytest.raises(BackendUnavailable, match="in fp16, as its graphs say, not in 'fp32'"):
        Pipeline.load(half_bundle.path, "onnxruntime", precision="fp32")
    with pytest.raises(BackendUnavailable, match="in fp32, as its graphs say, not in 'fp16'"):
        Pipeline.load(small_bundle.path, "onnxruntime", precision="fp16")
    with pytest.raises(BackendUnavailable, match="graphs are in fp32 or int8, not in fp16"):
        Pipeline.load(half_bundle.path, "openvino")


@pytest.mark.parametrize(
    ("value", "kind"), [(60.0, "constant"), (-60.0, "constant"), (60.0, "random"), (60.0, "spike")]
)
def test_extreme_latents_stay_finite(small_checkpoint, value, kind):
    latents = np.full((1, 4, 64, 64), value, np.float32)
    if kind == "random":
        latents *= np.random.default_rng(0).choice(np.float32([-1, 1]), latents.shape)
    if kind == "spike":
        latents *= np.arange(latents.size).reshape(latents.shape) == 8200
    assert np.isfinite(half_output(stage_definitions(small_checkpoint)["decoder"], {"latents": latents})).all()


@pytest.mark.parametrize("scale", [50.0, 1000.0])
def test_adversarial_embeddings_stay_finite(small_checkpoint, scale):
    rng = np.random.default_rng(1)
    embeds = (scale * rng.choice([-1, 1], (1, 77, 64))).astype(np.float32)
    latents = 60 * rng.choice(np.float32([-1, 1]), (1, 4, 64, 64))
    inputs = {"latents": latents, "prompt_embeds": embeds, "step": np.zeros((), np.int64)}
    assert np.isfinite(half_output(stage_definitions(small_checkpoint)["denoiser"], inputs)).all()


def test_repeated_tokens_stay_finite(small_checkpoint):
    for token in (0, 49407):
        ids = np.full((1, 77), token)
        assert np.isfinite(half_output(stage_definitions(small_checkpoint)["text_encoder"], {"input_ids": ids})).all()


def test_the_arithmetic_overflows_and_rounds_as_a_gpu_does():
    x = torch.full((64, 64), 60.0).half()
    with HalfArithmetic():
        product = x @ x  # 230400 > 65504
        third = torch.ones(2).half() / 3
    assert torch.isinf(product).all()
    assert product.dtype == torch.float16
    assert third[0].item() == np.float16(1 / 3)


@pytest.mark.parametrize("masked", ["none", "causal", "bool", "float"])
def test_written_out_attention_equals_torchs(masked):
    q, k, v = torch.randn(3, 2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    allowed |= torch.eye(9, dtype=torch.bool)
    options = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": allowed, "scale": 0.3},
        "float": {"attn_mask": allowed.float() * 3},
    }[masked]
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(half._attention(q, k, v, **options), expected)


def test_scores_are_scaled_before_the_product():
    """64 products of 50·50 are 160000, beyond float16; scaled by 1/√64 they are 20000."""
    q = torch.full((1, 1, 4, 64), 50.0).half()
    with HalfArithmetic():
        assert torch.isfinite(half._attention(q, q, q)).all()
        assert torch.isinf(q @ q.transpose(-2, -1)).all()
