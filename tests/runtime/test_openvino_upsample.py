"""OpenVINO's transposed convolution equals the phases it replaces, and replaces nothing else."""

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdturbo.backends.openvino.upsample import transposed_upsampling


def phases(
    path,
    *,
    height=5,
    width=7,
    outputs=3,
    bias=True,
    half=False,
    mode="CRD",
    end=-1,
    pads=(1, 1, 1, 1),
    read=False,
    equal=True,
):
    """A graph of the exporter's form: convolution, interleave, a crop of rows, a crop of columns."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((4 * outputs, 4, 2, 2), np.float32)
    constants = {
        "w": weight.astype(np.float16) if half else weight,
        "b": random.standard_normal(outputs if equal else 4 * outputs, np.float32).repeat(4 if equal else 1),
    }
    constants |= {"one": np.array([1]), "end": np.array([end]), "rows": np.array([2]), "columns": np.array([3])}
    kernel = "wide" if half else "w"
    nodes = [helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT)] if half else []
    nodes += [
        helper.make_node("Conv", ["x", kernel, "b"] if bias else ["x", kernel], ["phases"], pads=pads),
        helper.make_node("DepthToSpace", ["phases"], ["large"], blocksize=2, mode=mode),
        helper.make_node("Slice", ["large", "one", "end", "rows", "one"], ["lower"]),
        helper.make_node("Slice", ["lower", "one", "end", "columns", "one"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, height, width])]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if read:
        results.append(helper.make_tensor_value_info("phases", TensorProto.FLOAT, None))
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "phases", ends, results, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def drawn(model):
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 7), np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([x])[compiled.output(0)]


@pytest.mark.parametrize("form", [{}, {"bias": False}, {"half": True}, {"outputs": 1}])
def test_the_same_numbers_from_one_operator(tmp_path, form):
    core = openvino.Core()
    path = phases(tmp_path / "phases.onnx", **form)
    model = core.read_model(str(path))
    assert transposed_upsampling(model) == 1
    kinds = {node.get_type_name() for node in model.get_ops()}
    assert "ConvolutionBackpropData" in kinds
    assert not {"Convolution", "DepthToSpace", "Slice"} & kinds
    np.testing.assert_allclose(drawn(model), drawn(core.read_model(str(path))), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "other",
    [{"mode": "DCR"}, {"end": -2}, {"pads": (1, 1, 0, 0)}, {"read": True}, {"equal": False}],
    ids=lambda other: next(iter(other)),
)
def test_another_form_is_left_alone(tmp_path, other):
    core = openvino.Core()
    path = phases(tmp_path / "phases.onnx", **other)
    model = core.read_model(str(path))
    assert transposed_upsampling(model) == 0
    np.testing.assert_array_equal(drawn(model), drawn(core.read_model(str(path))))
