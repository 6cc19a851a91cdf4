"""NVIDIA's own ONNX parser, network and compiler on every graph we ship, without a GPU: TensorRT for RTX builds ahead of time.

Needs the package tensorrt-rtx-cu13: `make test-tensorrt`. It is asked by our own `trt_from_onnx`, under the name `tensorrt`.
"""

import sys

import pytest

from benchmarks.gpu.rtx_layers import report
from sdturbo import Bundle
from sdturbo.bundle import EMBEDDED
from sdturbo.bundle.description import STAGES
from sdturbo_export.errors import BuildError
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx

pytestmark = pytest.mark.tensorrt
GB = 1 << 30


@pytest.fixture(autouse=True)
def rtx(monkeypatch):
    """TensorRT for RTX under TensorRT's name."""
    import tensorrt_rtx

    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)


@pytest.fixture(params=["small in fp16", "small in fp32", "tiny in fp32"])
def shipped(request, half_bundle, small_bundle):
    """What `make engines` makes for NVIDIA GPUs. tiny's activations overflow float16."""
    bundles = {"small in fp16": half_bundle, "small in fp32": small_bundle, "tiny in fp32": Bundle.load(EMBEDDED)}
    return bundles[request.param]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_parsed_and_compiled(shipped, stage):
    told = []
    compiled = trt_from_onnx(shipped.graph(stage, 1), PlanOptions(GB), b"", told.append)
    assert len(compiled.plan) > 10_000
    assert told


def test_the_decoders_attention_is_one_kernel_and_its_traffic_is_bounded(half_bundle):
    """Ada. 1.62 GB today, 1.02 GB of it in fp32: GroupNorm's values reach memory before they are rounded."""
    summary, _ = report(half_bundle.graph("decoder", 1), "SM89")
    assert (summary.fused, summary.attentions) == (1, 1)
    assert summary.norms == 22
    assert summary.size <= 1.65e9
    assert summary.fp32_size <= 1.05e9


def test_uint8_inside_a_graph_is_refused_in_the_parsers_words(half_bundle, tmp_path):
    """What the decoder once was: a transpose after the cast to uint8."""
    import onnx

    model = onnx.load(str(half_bundle.graph("decoder", 1)))
    (cast,) = (node for node in model.graph.node if model.graph.output[0].name in node.output)
    assert cast.op_type == "Cast"
    cast.output[0] = "inside"
    shape = model.graph.output[0].type.tensor_type.shape
    model.graph.node.append(onnx.helper.make_node("Transpose", ["inside"], ["image"], perm=[0, 2, 1, 3]))
    assert [dim.dim_value for dim in shape.dim] == [1, 512, 512, 3]
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(BuildError, match=r"cannot read decoder\.onnx: .*UINT8.*\(node "):
        trt_from_onnx(tmp_path / "decoder.onnx", PlanOptions(GB), b"", lambda _: None)
