import json

import onnx
import pytest
import torch

from sdturbo_export.stages import PLANS, DenoiserReference, example_inputs, graph_module
from sdturbo_export.weights.checkpoint import open_checkpoint


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_time_tables_equal_diffusers_at_every_row(copied, prediction_type):
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": prediction_type}))
    checkpoint = open_checkpoint(copied)
    reference = DenoiserReference(checkpoint.module("unet"), checkpoint).eval()
    graphs = [graph_module(PLANS[1], checkpoint, without=without) for without in ((), ("time-tables",))]
    inputs = example_inputs(PLANS[1], checkpoint, 2)
    for row in range(len(checkpoint.schedule.rows)):
        inputs["step"] = torch.tensor(row)
        with torch.no_grad():
            expected = reference(*inputs.values())
            for graph in graphs:
                assert relative(graph(*inputs.values()), expected) < 1e-5


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_graph_module_equals_reference(small_checkpoint, plan):
    graph = graph_module(plan, small_checkpoint)
    reference = plan.reference(small_checkpoint.module(plan.component), small_checkpoint).eval()
    inputs = example_inputs(plan, small_checkpoint, 1, seed=5)
    with torch.no_grad():
        found, expected = graph(*inputs.values()), reference(*inputs.values())
        assert tuple(found.shape) == plan.output(small_checkpoint).at(512, 512).shape_at(1)
        assert str(found.dtype) == f"torch.{plan.output(small_checkpoint).dtype}"
        if plan.name == "decoder":  # the values before they are rounded
            assert (found.int() - expected.int()).abs().max() <= 1
            found, expected = graph.pixels(*inputs.values()), reference.pixels(*inputs.values())
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_graph_file_has_static_shapes_and_no_trace_of_this_machine(small_bundle, small_checkpoint, plan):
    path = small_bundle.graph(plan.name, 1)
    model = onnx.load(str(path), load_external_data=False)
    tensors = [*plan.inputs(small_checkpoint), plan.output(small_checkpoint)]
    for value, spec in zip([*model.graph.input, *model.graph.output], tensors, strict=True):
        assert value.name == spec.name
        assert tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) == spec.at(512, 512).shape_at(1)
    data = path.read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data
    onnx.checker.check_model(str(path))


def test_timestep_arithmetic_left_the_denoiser(small_bundle):
    model = onnx.load(str(small_bundle.graph("denoiser", 1)), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Sin", "Cos", "Exp"}
    names = " ".join(tensor.name for tensor in model.graph.initializer)
    assert "time_embedding.linear" not in names
    assert "time_emb_proj" not in names


@pytest.mark.parametrize("plan", [PLANS[2], PLANS[3]], ids=lambda plan: plan.name)
def test_uint8_stands_beside_one_cast_at_the_graphs_border(small_bundle, plan):
    """TensorRT's parser takes it nowhere else."""
    model = onnx.load(str(small_bundle.graph(plan.name, 1)), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    readers = [node.op_type for node in graph.node if "image" in node.input]
    writers = [node.op_type for node in graph.node if "image" in node.output]
    assert (readers, writers) == (([], ["Cast"]) if plan.name == "decoder" else (["Cast"], []))
    assert not [value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8]
    casts = [node.attribute[0].i for node in graph.node if node.op_type == "Cast"]
    assert casts.count(onnx.TensorProto.UINT8) == (plan.name == "decoder")


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[3]], ids=lambda plan: plan.name)
def test_the_step_has_one_dimension_before_it_chooses_a_row(small_bundle, plan):
    """torch 2.11 exports no table indexed by a tensor without dimensions."""
    graph = onnx.load(str(small_bundle.graph(plan.name, 1)), load_external_data=False).graph
    assert {node.op_type for node in graph.node if "step" in node.input} == {"Reshape"}
