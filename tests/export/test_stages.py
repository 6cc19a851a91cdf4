import json

import onnx
import pytest
import torch

from sdturbo_export.stages import DenoiserReference, example_inputs, graph_module, stage_definitions
from sdturbo_export.weights.checkpoint import open_checkpoint

STAGES = ("text_encoder", "denoiser", "decoder", "encoder")


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_time_tables_equal_diffusers_at_every_row(copied, prediction_type):
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": prediction_type}))
    checkpoint = open_checkpoint(copied)
    reference = DenoiserReference(checkpoint.module("unet"), checkpoint).eval()
    definition = stage_definitions(checkpoint)["denoiser"]
    graphs = [graph_module(definition, without=without) for without in ((), ("time-tables",))]
    inputs = example_inputs(definition, 2)
    inputs["latents"] = inputs["latents"][..., :16, :16]  # a small picture: the tables do not depend on its size
    for row in range(len(checkpoint.schedule.rows)):
        inputs["step"] = torch.tensor(row)
        with torch.no_grad():
            expected = reference(*inputs.values())
            for graph in graphs:
                assert relative(graph(*inputs.values()), expected) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_graph_module_equals_reference(small_checkpoint, stage):
    definition = stage_definitions(small_checkpoint)[stage]
    graph = graph_module(definition)
    reference = definition.reference(small_checkpoint.module(definition.component), small_checkpoint).eval()
    inputs = example_inputs(definition, 1, seed=5)
    with torch.no_grad():
        found, expected = graph(*inputs.values()), reference(*inputs.values())
        assert tuple(found.shape) == definition.output.at(512, 512).shape_at(1)
        assert str(found.dtype) == f"torch.{definition.output.dtype}"
        if stage == "decoder":  # the values before they are rounded
            assert (found.int() - expected.int()).abs().max() <= 1
            found, expected = graph.pixels(*inputs.values()), reference.pixels(*inputs.values())
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_graph_file_has_static_shapes_and_no_trace_of_this_machine(small_bundle, small_checkpoint, stage):
    definition = stage_definitions(small_checkpoint)[stage]
    path = small_bundle.graph(stage, 1)
    model = onnx.load(str(path), load_external_data=False)
    tensors = [*definition.inputs, definition.output]
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


@pytest.mark.parametrize("stage", ["decoder", "encoder"])
def test_uint8_stands_beside_one_cast_at_the_graphs_border(small_bundle, stage):
    """TensorRT's parser takes it nowhere else."""
    model = onnx.load(str(small_bundle.graph(stage, 1)), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    readers = [node.op_type for node in graph.node if "image" in node.input]
    writers = [node.op_type for node in graph.node if "image" in node.output]
    assert (readers, writers) == (([], ["Cast"]) if stage == "decoder" else (["Cast"], []))
    assert not [value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8]
    casts = [node.attribute[0].i for node in graph.node if node.op_type == "Cast"]
    assert casts.count(onnx.TensorProto.UINT8) == (stage == "decoder")


@pytest.mark.parametrize("stage", ["denoiser", "encoder"])
def test_the_step_has_one_dimension_before_it_chooses_a_row(small_bundle, stage):
    """torch 2.11 exports no table indexed by a tensor without dimensions."""
    graph = onnx.load(str(small_bundle.graph(stage, 1)), load_external_data=False).graph
    assert {node.op_type for node in graph.node if "step" in node.input} == {"Reshape"}
