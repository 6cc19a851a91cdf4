"""The phase form of upsampling equals nearest 2x and 3x3 convolution, borders included, in the module and in the graph."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import save_file
from torch import nn

from sdturbo.backends.openvino.upsample import transposed_upsampling
from sdturbo.errors import InvalidRequest
from sdturbo_export.build import build
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.options import BuildOptions
from sdturbo_export.rewrites import rewrites_of
from sdturbo_export.rewrites.upsample import MIN_CHANNELS, REWRITE, PhaseUpsample, phase_upsampling
from sdturbo_export.stages import example_inputs, graph_module, stage_definitions
from sdturbo_export.weights.lora_files import Lora

SHAPES = [(1, 32, 8, 8, 32), (2, 32, 5, 9, 48), (1, 64, 1, 3, 32)]  # batch, channels, height, width, channels out


def upsampler(kind, channels, out):
    torch.manual_seed(0)
    if kind == "sequence":
        return nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(channels, out, 3, padding=1, bias=False))
    return nn.Sequential(Upsample2D(channels, use_conv=True, out_channels=out))


def rewritten(module):
    phase_upsampling(module)
    return module.eval()


def deviation(found, expected):
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


@pytest.mark.parametrize("kind", ["diffusers", "sequence"])
@pytest.mark.parametrize("shape", SHAPES)
def test_module_equals_upsampling_and_convolution(kind, shape):
    batch, channels, height, width, out = shape
    x = torch.randn(batch, channels, height, width)
    with torch.no_grad():
        expected = upsampler(kind, channels, out)(x)
        module = rewritten(upsampler(kind, channels, out))
        assert any(isinstance(one, PhaseUpsample) for one in module)
        found = module(x)
    assert found.shape == expected.shape == (batch, out, 2 * height, 2 * width)
    assert deviation(found, expected) < 1e-5


def test_each_border_row_is_exact_in_float64():
    """In float64 nothing hides: a border that padded otherwise would be wrong by the size of the weights."""
    torch.manual_seed(1)
    conv = nn.Conv2d(32, 32, 3, padding=1).double()
    x = torch.randn(1, 32, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        difference = (PhaseUpsample(conv)(x) - expected).abs().amax(dim=(0, 1))
    assert difference.shape == (8, 8)
    assert difference.max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_equals_upsampling_and_convolution(shape, tmp_path):
    batch, channels, height, width, out = shape
    x = torch.randn(batch, channels, height, width)
    with torch.no_grad():
        expected = upsampler("diffusers", channels, out)(x).numpy()
    with WeightFile(tmp_path / "w.weights") as weights:
        module = rewritten(upsampler("diffusers", channels, out))
        onnx_from_torch(module, {"x": x}, ["y"], tmp_path / "graph.onnx", weights)
    graph = str(tmp_path / "graph.onnx")
    operators = [node.op_type for node in onnx.load(graph).graph.node]
    assert operators == ["Conv", "DepthToSpace", "Slice", "Slice"]
    (found,) = onnxruntime.InferenceSession(graph).run(None, {"x": x.numpy()})
    assert deviation(found, expected) < 1e-5
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert deviation(compiled(x.numpy())[0], expected) < 1e-5


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(Upsample2D(MIN_CHANNELS - 1, use_conv=True)),
        nn.Sequential(Upsample2D(64, use_conv=False)),
        nn.Sequential(Upsample2D(64, use_conv_transpose=True)),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(64, 64, 3, padding=1)),
        nn.Sequential(nn.Upsample(scale_factor=3), nn.Conv2d(64, 64, 3, padding=1)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, stride=2)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
    ],
)
def test_what_is_not_nearest_2x_before_a_3x3_convolution_is_left_alone(module):
    before = str(module)
    phase_upsampling(module)
    assert str(module) == before


def test_another_output_size_is_an_error():
    with pytest.raises(ValueError, match="doubles"):
        rewritten(upsampler("diffusers", 32, 32))[0](torch.zeros(1, 32, 4, 4), (7, 7))


@pytest.mark.parametrize("stage", REWRITE.stages)
def test_stage_with_and_without_the_rewrite_are_the_same(small_checkpoint, stage):
    definition = stage_definitions(small_checkpoint)[stage]
    inputs = example_inputs(definition, 1, seed=3)
    modules = [graph_module(definition, without=without) for without in ((), ("upsample",))]
    assert [sum(isinstance(one, PhaseUpsample) for one in module.modules()) for module in modules] == [3, 0]
    with torch.no_grad():
        found, expected = ((one.pixels if stage == "decoder" else one)(*inputs.values()) for one in modules)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_leaving_it_out_is_part_of_the_stage_and_of_the_bundle(small_checkpoint, small_bundle, store, tmp_path):
    lines = []
    plain = build(
        small_checkpoint, tmp_path / "plain", BuildOptions(without=["upsample"]), store=store, say=lines.append
    )
    exported = [lines[i - 1].split()[1] for i, line in enumerate(lines) if line.strip().startswith("exported")]
    assert exported == ["denoiser", "decoder"]
    assert plain.bundle_id != small_bundle.bundle_id
    for bundle, expected in ((small_bundle, ["upsample", "group-norm"]), (plain, ["group-norm"])):
        manifest = json.loads((bundle.path / "bundle.json").read_text())
        assert manifest["stages"]["decoder"]["rewrites"] == expected
        operators = {
            node.op_type for node in onnx.load(bundle.graph("decoder", 1), load_external_data=False).graph.node
        }
        assert ("DepthToSpace" in operators, "Resize" in operators) == (
            "upsample" in expected,
            "upsample" not in expected,
        )


def test_an_unknown_rewrite_is_refused(small_checkpoint, tmp_path):
    names = "time-tables, upsample, transposed-upsample, group-norm, geglu"
    with pytest.raises(InvalidRequest, match=f"sampling.*Expected {names}"):
        build(small_checkpoint, tmp_path / "out", BuildOptions(without=["sampling"]))
    assert rewrites_of("text_encoder", "fp32") == ()


def test_lora_is_fused_before_the_phases_are_made(small_checkpoint, tmp_path):
    name = "up_blocks.0.upsamplers.0.conv"
    factors = {
        f"unet.{name}.lora_A.weight": torch.randn(4, 64, 3, 3),
        f"unet.{name}.lora_B.weight": torch.randn(64, 4, 1, 1),
    }
    save_file(factors, tmp_path / "style.safetensors")
    styled = dataclasses.replace(small_checkpoint, loras=(Lora(tmp_path / "style.safetensors", 0.5),))
    found, plain = (
        graph_module(stage_definitions(one)["denoiser"]).unet.get_submodule(name).weight
        for one in (styled, small_checkpoint)
    )
    expected = PhaseUpsample(styled.module("unet").get_submodule(name)).conv.weight
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, atol=0.1)


@pytest.mark.parametrize("stage", ["denoiser", "decoder"])
def test_openvino_finds_every_one_in_the_graph(small_bundle, stage):
    model = openvino.Core().read_model(str(small_bundle.graph(stage, 1)))
    interleaved = sum(node.get_type_name() == "DepthToSpace" for node in model.get_ops())
    assert interleaved > 0
    assert transposed_upsampling(model) == interleaved
