"""NVIDIA's own ONNX parser, network and compiler on every graph we ship, without a GPU: TensorRT for RTX builds ahead of time.

Needs the package tensorrt-rtx-cu13: `make test-tensorrt`. It is asked by our own `trt_from_onnx` and `sdturbo-export trt`.
"""

import ast
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from imitation import tensorrt_rtx as imitated

from benchmarks.gpu.rtx_layers import report
from sdturbo import Bundle
from sdturbo.backends.nvidia.library import RTX
from sdturbo.backends.nvidia.messages import Messages, logger
from sdturbo.bundle.description import STAGES
from sdturbo.bundle.plans import plan_bytes, read_plans
from sdturbo.commands.console import run
from sdturbo.errors import InvalidRequest
from sdturbo_export.build import build
from sdturbo_export.cli import cli
from sdturbo_export.errors import BuildError
from sdturbo_export.options import BuildOptions
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx
from sdturbo_export.weights.resolve import resolve

pytestmark = pytest.mark.tensorrt
GB = 1 << 30


OPTIONS = PlanOptions(GB, library=RTX)


@pytest.fixture(scope="module")
def tiny_half(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return build(resolve("tiny", folder), folder / "half", BuildOptions(precision="fp16"), store=store)


@pytest.fixture(params=["small in fp16", "small in fp32", "tiny in fp16"])
def shipped(request, half_bundle, small_bundle, tiny_half):
    """What `make engines` makes for NVIDIA GPUs, and fp32."""
    return {"small in fp16": half_bundle, "small in fp32": small_bundle, "tiny in fp16": tiny_half}[request.param]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_parsed_and_compiled(shipped, stage):
    told = []
    compiled = trt_from_onnx(shipped.graph(stage, 1), OPTIONS, b"", told.append)
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
        trt_from_onnx(tmp_path / "decoder.onnx", OPTIONS, b"", lambda _: None)


def test_progress_only_grows_and_reaches_its_end(half_bundle):
    told = []
    trt_from_onnx(half_bundle.graph("decoder", 1), OPTIONS, b"", told.append)
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
        trt_from_onnx(half_bundle.graph("decoder", 1), OPTIONS, b"", stop)
    assert max(told) < 1.0


def test_no_timings_are_asked_for_which_would_need_a_gpu(half_bundle):
    compiled = trt_from_onnx(half_bundle.graph("text_encoder", 1), OPTIONS, b"not of this library", lambda _: None)
    assert compiled.timings == b""


def test_the_library_speaks_to_our_one_logger_and_the_words_reach_who_listens(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    messages = Messages()
    with messages.listening(), pytest.raises(BuildError, match=r"cannot read broken\.onnx"):
        trt_from_onnx(tmp_path / "broken.onnx", OPTIONS, b"", lambda _: None)
    assert "gives no reason" not in messages.last()
    assert logger(RTX.load().ILogger) is logger(RTX.load().ILogger)


def test_what_the_library_lists_is_what_the_documents_say():
    """A newer one may list more: then the documents change."""
    assert RTX.capabilities() == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture
def copied(shipped, tmp_path):
    """One of the bundles, without plans."""
    return Bundle.load(shutil.copytree(shipped.path, tmp_path / "bundle"))


def test_the_command_compiles_plans_ahead_for_all_cards(copied, capsys):
    assert run(cli, "sdturbo-export", ["trt", str(copied.path), "--library", "tensorrt-rtx"]) == 0
    after = Bundle.load(copied.path)  # every hash
    plans = read_plans(after)
    newer = "8.0,8.6,8.9,12.0,12.1"
    groups = {newer, "7.5"} if copied.precision == "fp16" else {newer}
    assert {(plan.stage, plan.key.compute_capability) for plan in plans} == {
        (stage, group) for stage in STAGES for group in groups
    }
    assert all(plan.relative_l2 is None and plan.median_ms is None for plan in plans)
    assert all(len(plan_bytes(after, plan)) > 10_000 for plan in plans)
    told = capsys.readouterr()
    assert "were not run, compared or timed" in told.out
    assert ("which is left out" in told.err) == (copied.precision == "fp32")


def test_a_plan_for_all_newer_cards_is_hardly_larger_than_one_for_a_card(half_bundle):
    """So one plan names them all. Measured: denoiser 1.4 % larger."""
    sizes = [
        len(
            trt_from_onnx(
                half_bundle.graph("denoiser", 1), replace(OPTIONS, capabilities=group), b"", lambda _: None
            ).plan
        )
        for group in (RTX.targets((), "fp16")[1], ("8.9",))
    ]
    assert sizes[0] < 1.1 * sizes[1]


def test_turing_has_no_products_in_fp32(small_bundle):
    """The reason for `Library.lacks`. If it is gone, so may be the exception."""
    options = replace(OPTIONS, capabilities=("7.5",))
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        trt_from_onnx(small_bundle.graph("text_encoder", 1), options, b"", lambda _: None)


@pytest.mark.parametrize(("precision", "capability"), [("fp16", "9.0"), ("fp32", "7.5")])
def test_cards_that_the_library_does_not_compile_for_are_refused(
    half_bundle, small_bundle, tmp_path, capsys, precision, capability
):
    source = {"fp16": half_bundle, "fp32": small_bundle}[precision]
    bundle = shutil.copytree(source.path, tmp_path / "bundle")
    assert run(cli, "sdturbo-export", ["trt", str(bundle), "--capability", capability]) == InvalidRequest.exit_code
    assert f"Got the compute capability {capability}. TensorRT for RTX" in capsys.readouterr().err
    assert not (bundle / "compiled").exists()


def test_every_name_of_the_stub_is_in_the_library():
    """What our code calls beside TensorRT's names. `test_api.py` holds it where the library is installed."""
    import tensorrt_rtx

    stub = Path(__file__).parents[1] / "typings/libraries/tensorrt_rtx/__init__.pyi"
    classes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef)]
    names = [
        (node.name, member.name) for node in classes for member in node.body if isinstance(member, ast.FunctionDef)
    ]
    assert len(names) > 6
    assert [(kind, name) for kind, name in names if not hasattr(getattr(tensorrt_rtx, kind), name)] == []


def test_the_imitation_has_no_name_that_the_library_lacks():
    import tensorrt_rtx

    for kind, name in (
        (imitated.Engine, "ICudaEngine"),
        (imitated.RuntimeConfig, "IRuntimeConfig"),
        (imitated.RuntimeCache, "IRuntimeCache"),
        (imitated.Config, "IBuilderConfig"),
        (imitated.Rtx.ComputeCapability, "ComputeCapability"),
    ):
        own = {member for member in vars(kind) if not member.startswith("_")} - {
            "real",
            "imag",
            "numerator",
            "denominator",
        }
        assert {member for member in own if not hasattr(getattr(tensorrt_rtx, name), member)} == set(), name
