"""Weights on disk: in float16 where that is exact, in float32 elsewhere; the numbers are the same."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch


def exported(directory, *, half):
    """(graph's path, module, input) of a convolution and a product with weights that float16 holds, or not."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.Flatten(2), nn.Linear(64, 64)).requires_grad_(False)
    if half:
        module.half().float()
    x = torch.randn(1, 4, 8, 8)
    with WeightFile(directory / "w.weights") as weights:
        onnx_from_torch(module, {"x": x}, ["y"], directory / "graph.onnx", weights)
    return directory / "graph.onnx", module, x


def kinds(path):
    model = onnx.load(str(path), load_external_data=False)
    return {tensor.data_type for tensor in model.graph.initializer if tensor.external_data}


@pytest.mark.parametrize("half", [True, False])
def test_numbers_are_the_same_and_only_exact_weights_are_halved(tmp_path, half):
    path, module, x = exported(tmp_path, half=half)
    assert kinds(path) == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
    size = sum(p.numel() for p in module.parameters() if p.dim() > 1) * (2 if half else 4)
    assert (tmp_path / "w.weights").stat().st_size == pytest.approx(size, abs=4096)
    onnx.checker.check_model(str(path))
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, module(x).numpy(), atol=1e-5)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x.numpy())[0], module(x).numpy(), atol=1e-5)


def test_one_value_that_float16_does_not_hold_keeps_its_tensor_in_float32():
    from sdturbo_export.graphs import onnx_from_torch as module
    from sdturbo_export.graphs.onnx_from_torch import ir

    exact = np.full(1000, 1.5, np.float32)
    assert module._half(ir.tensor(exact, name="w"), rounded=False).numpy().dtype == np.float16
    for value in (1 / 3, 1e6, 1e-9, np.nan):
        assert module._half(ir.tensor(np.append(exact, np.float32(value)), name="w"), rounded=False) is None
    assert module._half(ir.tensor(np.arange(1000), name="w"), rounded=False) is None
