"""The gated unit in two linear layers equals diffusers', in the module, in the graph and in the stage."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.rewrites import rewrites_of
from sdturbo_export.rewrites.geglu import TwoLinearGEGLU, two_linear_geglu
from sdturbo_export.stages import example_inputs, graph_module, stage_definitions


@pytest.mark.parametrize("bias", [True, False])
def test_module_and_graph_equal_diffusers(bias, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(GEGLU(24, 96, bias=bias)).requires_grad_(False)
    x = torch.randn(2, 7, 24) * 3
    expected = module(x)
    two_linear_geglu(module)
    assert isinstance(module[0], TwoLinearGEGLU)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    with WeightFile(tmp_path / "w.weights") as weights:
        onnx_from_torch(module, {"x": x}, ["y"], tmp_path / "graph.onnx", weights)
    graph = str(tmp_path / "graph.onnx")
    assert "Split" not in {node.op_type for node in onnx.load(graph).graph.node}
    (found,) = onnxruntime.InferenceSession(graph).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x.numpy())[0], expected, atol=1e-5, rtol=1e-5)


def test_denoiser_with_and_without_the_rewrite_are_the_same(small_checkpoint):
    definition = stage_definitions(small_checkpoint)["denoiser"]
    inputs = example_inputs(definition, 1, seed=3)
    modules = [graph_module(definition, without=without) for without in ((), ("geglu",))]
    assert [sum(isinstance(one, GEGLU) for one in module.modules()) for module in modules] == [
        0,
        sum(isinstance(one, TwoLinearGEGLU) for one in modules[0].modules()),
    ]
    assert any(isinstance(one, TwoLinearGEGLU) for one in modules[0].modules())
    with torch.no_grad():
        found, expected = (module(*inputs.values()) for module in modules)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_float16_graphs_keep_the_unit_that_gpu_engines_know():
    assert "geglu" not in rewrites_of("denoiser", "fp16")
