"""NVIDIA's own ONNX parser, network and compiler on every graph we ship, without a GPU: TensorRT for RTX builds ahead of time.

Needs the package tensorrt-rtx-cu13: `make test-tensorrt`. It is asked by our own `trt_from_onnx`, under the name `tensorrt`.
"""

import sys

import pytest

from benchmarks.gpu.rtx_layers import report
from sdturbo import Bundle
from sdturbo.backends.nvidia.messages import Messages, logger
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
    assert told == sorted(told)  # progress never runs backwards


# stage -> layers, bytes, attentions, norms. Measured: 21, 334, 90 and 63 layers, 7, 127, 760 and 381 MB
BOUNDS = {
    "text_encoder": (24, 8e6, 2, 5),
    "denoiser": (345, 132e6, 20, 69),
    "decoder": (94, 780e6, 1, 22),
    "encoder": (66, 390e6, 1, 14),
}


@pytest.mark.parametrize("capability", ["SM75", "SM80", "SM86", "SM89", "SM120"])
@pytest.mark.parametrize("stage", STAGES)
def test_layers_and_traffic_are_bounded_and_no_norm_writes_fp32(half_bundle, stage, capability):
    summary, _ = report(half_bundle.graph(stage, 1), capability)
    layers, size, attentions, norms = BOUNDS[stage]
    assert (summary.attentions, summary.norms, summary.fp32_norms) == (attentions, norms, 0)
    if capability == "SM89":
        assert summary.layers <= layers
        assert summary.size <= size
        assert summary.fp32_size <= 0.05 * size
    # small's cross-attentions at 64² have one head, and are not fused. The full denoiser has five heads there
    assert summary.fused == attentions - (3 if stage == "denoiser" else 0)


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
    with pytest.raises(BuildError, match=r"cannot read decoder\.onnx: .*UINT8.*\(node .*, operator \w+\)"):
        trt_from_onnx(tmp_path / "decoder.onnx", PlanOptions(GB), b"", lambda _: None)


def test_progress_only_grows_and_reaches_its_end(half_bundle):
    told = []
    trt_from_onnx(half_bundle.graph("decoder", 1), PlanOptions(GB), b"", told.append)
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] == 1.0


class _Stop(Exception):
    pass


def test_an_exception_in_the_progress_ends_the_build_and_comes_out(half_bundle):
    """As Ctrl-C does. The acceptance parses graphs by ending their builds at the first step."""
    told = []

    def stop(share):
        told.append(share)
        raise _Stop

    with pytest.raises(_Stop):
        trt_from_onnx(half_bundle.graph("decoder", 1), PlanOptions(GB), b"", stop)
    assert max(told) < 1.0


def test_timings_are_given_back_and_those_of_another_machine_do_no_harm(half_bundle):
    graph = half_bundle.graph("text_encoder", 1)
    first = trt_from_onnx(graph, PlanOptions(GB), b"", lambda _: None)
    for timings in (first.timings, b"not of this library"):
        assert len(trt_from_onnx(graph, PlanOptions(GB), timings, lambda _: None).plan) > 10_000


def test_the_library_speaks_to_our_one_logger_and_the_words_reach_who_listens(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    messages = Messages()
    with messages.listening(), pytest.raises(BuildError, match=r"cannot read broken\.onnx"):
        trt_from_onnx(tmp_path / "broken.onnx", PlanOptions(GB), b"", lambda _: None)
    assert "gives no reason" not in messages.last()
    assert logger() is logger()
