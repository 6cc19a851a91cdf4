"""GroupNorm by channels equals torch's, where its variance would cancel too, in the module and in the graph."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.rewrites import rewrites_of
from sdturbo_export.rewrites.group_norm import REWRITE, ChannelGroupNorm, group_norm_by_channels
from sdturbo_export.stages import example_inputs, graph_module, stage_definitions

SHAPES = [(1, 32, 8, 16, 16), (2, 64, 32, 5, 9), (1, 48, 1, 7, 3), (1, 32, 8, 40)]  # batch, channels, groups, spatial


def norm_and_input(shape, offset=0.0):
    batch, channels, groups, *spatial = shape
    torch.manual_seed(0)
    norm = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-6))
    nn.init.normal_(norm[0].weight)
    nn.init.normal_(norm[0].bias)
    return norm.requires_grad_(False), torch.randn(batch, channels, *spatial) * 3 + offset


@pytest.mark.parametrize("shape", SHAPES)
def test_module_equals_torch(shape):
    norm, x = norm_and_input(shape)
    expected = norm(x)
    group_norm_by_channels(norm)
    assert isinstance(norm[0], ChannelGroupNorm)
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_a_large_mean_does_not_swallow_the_variance():
    """Mean 1000, deviation 3: E[x²]-m² would keep no digit of the variance."""
    norm, x = norm_and_input(SHAPES[0], offset=1000.0)
    expected = norm.double()(x.double())
    norm.float()
    group_norm_by_channels(norm)
    assert ((norm(x) - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_equals_torch(shape, tmp_path):
    norm, x = norm_and_input(shape)
    expected = norm(x).numpy()
    group_norm_by_channels(norm)
    with WeightFile(tmp_path / "w.weights") as weights:
        onnx_from_torch(norm, {"x": x}, ["y"], tmp_path / "graph.onnx", weights)
    graph = str(tmp_path / "graph.onnx")
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(graph).graph.node}
    (found,) = onnxruntime.InferenceSession(graph).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x.numpy())[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", REWRITE.stages)
def test_stage_with_and_without_the_rewrite_are_the_same(small_checkpoint, stage):
    definition = stage_definitions(small_checkpoint)[stage]
    inputs = example_inputs(definition, 1, seed=3)
    modules = [graph_module(definition, without=without) for without in ((), ("group-norm",))]
    assert not any(isinstance(one, nn.GroupNorm) for one in modules[0].modules())
    with torch.no_grad():
        found, expected = ((one.pixels if stage == "decoder" else one)(*inputs.values()) for one in modules)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_float16_graphs_keep_the_norm_that_gpu_engines_know(small_checkpoint):
    assert "group-norm" not in rewrites_of("decoder", "fp16")
    module = graph_module(stage_definitions(small_checkpoint)["decoder"], precision="fp16")
    assert not any(isinstance(one, ChannelGroupNorm) for one in module.modules())
