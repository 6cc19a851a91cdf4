"""int8: the numbers of one layer, what is measured of a graph, and a whole bundle of the small model."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import openvino
import pytest
from click.testing import CliRunner

from sdturbo import BackendUnavailable, Bundle, InvalidRequest, Pipeline
from sdturbo.commands.cli import cli
from sdturbo.golden import golden_distance
from sdturbo_export import build as build_module
from sdturbo_export import verify
from sdturbo_export.build import build
from sdturbo_export.errors import QualityError
from sdturbo_export.graphs.onnx_from_torch import WeightFile
from sdturbo_export.int8 import prompts, quality, recipe
from sdturbo_export.int8.layers import activations, layers_of
from sdturbo_export.int8.measurements import remembered
from sdturbo_export.int8.prompts import Prompts, prompts_for
from sdturbo_export.int8.qdq import activation_grid, insert_qdq, quantize_weight, write_graph
from sdturbo_export.int8.ranges import best_range, measure_ranges
from sdturbo_export.int8.sensitivity import measure_damage
from sdturbo_export.int8.session import GraphSession
from sdturbo_export.int8.trajectories import SeededPrompt, seeded
from sdturbo_export.options import BuildOptions
from sdturbo_export.proof.diffusers_reference import Asked
from sdturbo_export.proof.distance import relative_l2

INT8 = BuildOptions(batch_sizes=(1, 2), precision="int8", allow_low_quality=True)
# two convolutions read `x`, one weight is stored in half; `peak` has values that 8 bits cannot hold beside the others
GRAPH = """<ir_version: 10, opset_import: ["" : 20]> stage (float[1,4,16,8] x) => (float[1,4,16,8] out)
{
    w2 = Cast <to = 1> (w2_half)
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1, bias)
    [second] b = Conv <pads = [1, 1, 1, 1]> (x, w2)
    both = Concat <axis = 1> (a, b)
    peak = Mul (both, peaks)
    [third] c = Conv (peak, w3)
    [fourth] d = MatMul (c, w4)
    out = Relu (d)
}"""
SHAPES = {"w1": (8, 4, 3, 3), "w2_half": (8, 4, 3, 3), "bias": (8,), "w3": (4, 16, 1, 1), "w4": (8, 8)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The ONNX file of GRAPH with random weights, stored beside it."""
    directory = tmp_path_factory.mktemp("graph")
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights["w2_half"] = weights["w2_half"].astype(np.float16)
    weights["peaks"] = np.ones((1, 16, 1, 1), np.float32)
    weights["peaks"][0, 3] = 1000
    weights["w3"][:, 3] = 0  # the great values count for nothing, but stretch the range
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    ir.save(ir.from_proto(model), directory / "stage.onnx", external_data="stage.data")
    return directory / "stage.onnx"


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 4, 16, 8)).astype(np.float32)} for _ in range(4)]


@pytest.fixture(scope="module")
def measured_ranges(graph, points):
    return measure_ranges(graph, activations(layers_of(ir.load(graph))), points)


def test_weights_keep_seven_bits_per_channel():
    weight = np.random.default_rng(0).standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight[2] = 0
    weight[3] *= 1000
    whole, scale = quantize_weight(weight, 0)
    assert (whole.dtype, np.abs(whole).max()) == (np.int8, 63)
    assert scale.shape == (6,)
    step = scale[:, None, None, None]
    assert (np.abs(whole * step - weight) <= step * 0.5001).all()
    assert not whole[2].any()


def test_a_range_leaves_out_what_costs_more_than_it_saves():
    sample = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    lo, hi = best_range(sample, -40.0, 40.0)  # one stray value of ±40
    assert -16 < lo < -3
    assert 3 < hi < 16
    assert best_range(np.linspace(0, 1, 1000, dtype=np.float32), 0.0, 1.0) == (0.0, 1.0)
    assert best_range(np.zeros(9, np.float32), 0.0, 0.0) == (0.0, 1.0)


def test_zero_is_a_whole_step():
    for lo, hi in ((-0.3, 6.0), (0.0, 1.0), (-5.0, 0.0)):
        scale, zero = activation_grid(lo, hi)
        assert 0 <= zero <= 255
        assert -int(zero) * float(scale) == pytest.approx(lo, abs=float(scale))


def test_ranges_are_those_of_the_tensors(measured_ranges, points):
    assert set(measured_ranges) == {"x", "peak", "c"}
    lo, hi = measured_ranges["x"]
    values = np.concatenate([point["x"].ravel() for point in points])
    assert values.min() <= lo < -2.5
    assert 2.5 < hi <= values.max()


def test_layers_are_found_behind_casts(graph):
    layers = layers_of(ir.load(graph))
    assert [(layer.name, layer.activation, layer.axis) for layer in layers] == [
        ("first", "x", 0),
        ("second", "x", 0),
        ("third", "peak", 0),
        ("fourth", "c", 1),
    ]


def test_damage_is_each_layers_own(graph, points, measured_ranges):
    damage = measure_damage(graph, layers_of(ir.load(graph)), measured_ranges, points, 0.01)
    assert list(damage) == ["first", "second", "third", "fourth"]
    assert all(0 < damage[name] < 0.03 for name in ("first", "second", "fourth"))
    assert damage["third"] > 0.1  # its range is that of values a thousand times as great


def test_what_stays_below_half_the_limit_is_measured_once(graph, points, measured_ranges):
    points = points[::-1]  # the last one does most
    layers = layers_of(ir.load(graph))
    alone = [measure_damage(graph, layers, measured_ranges, [point], 0.0) for point in points]
    every = measure_damage(graph, layers, measured_ranges, points, 0.0)
    assert every == {name: max(one[name] for one in alone) for name in every}
    assert every != alone[0]
    limit = 2 * sorted(alone[0].values())[1]  # half of it is the second least: two layers do not exceed that
    mixed = measure_damage(graph, layers, measured_ranges, points, limit)
    assert mixed == {name: (every if alone[0][name] > limit / 2 else alone[0])[name] for name in every}


def test_a_written_graph_computes_in_8_bits_on_both_backends(graph, points, measured_ranges, tmp_path):
    expected = GraphSession(ir.load(graph), graph.parent, fuse=True).run(points[0])[0]
    model = ir.load(graph)
    insert_qdq(model, [layer for layer in layers_of(model) if layer.name != "third"], measured_ranges)
    with WeightFile(tmp_path / "stage.weights") as weights:
        write_graph(model, tmp_path / "stage.onnx", weights)
    onnx.checker.check_model(str(tmp_path / "stage.onnx"), full_check=True)
    names = [node.op_type for node in onnx.load(str(tmp_path / "stage.onnx")).graph.node]
    assert names.count("QuantizeLinear") == 2  # x once for two layers, and c
    assert "Cast" not in names

    by_ort = GraphSession(ir.load(tmp_path / "stage.onnx"), tmp_path, fuse=True).run(points[0])[0]
    compiled = openvino.Core().compile_model(str(tmp_path / "stage.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    by_openvino = compiled(points[0])[0]
    assert 0 < relative_l2(by_ort, expected) < 0.03
    assert relative_l2(by_openvino, by_ort) < 0.01
    executed = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in executed
        if "layerType" in info
    ]
    assert sum(precision in ("u8", "i8") for kind, precision in kinds if kind == "Convolution") == 2


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (48, 64, 3), np.uint8)
    other = np.clip(one + rng.normal(0, 25, one.shape), 0, 255).astype(np.uint8)
    expected = structural_similarity(
        one, other, channel_axis=2, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    assert quality.ssim(one, other) == pytest.approx(expected, abs=1e-6)
    assert quality.ssim(one, one) == pytest.approx(1)


def scores(*values):
    return [quality.Score(f"prompt {i}", i, 1, value, 0.9) for i, value in enumerate(values)]


def test_the_gate_is_the_median():
    assert quality.summary(scores(20.0, 28.0, 40.0))["passed"]
    below = quality.summary(scores(27.9, 27.9, 99.0))
    assert not below["passed"]
    with pytest.raises(QualityError, match=r"27\.9 dB .* of 3 prompts.*--allow-low-quality"):
        quality.require_quality(below, "some", allow_low_quality=False)
    quality.require_quality(below, "some", allow_low_quality=True)


def test_prompts_that_judge_do_not_calibrate(small_checkpoint):
    for built_in in (prompts._tiny(), prompts._general()):
        assert len(set(built_in.judging)) >= 32
        assert len(set(built_in.calibration)) >= 16
        assert not set(built_in.judging) & set(built_in.calibration)
    assert prompts_for(small_checkpoint, None) == prompts._general()


def test_a_file_of_prompts_may_begin_with_a_byte_order_mark(small_checkpoint, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\na cat\n", encoding="utf-8-sig")
    assert prompts_for(small_checkpoint, file).calibration == ("a fox", "a cat")


def test_prompts_go_round_the_steps_and_have_seeds_of_their_own():
    assert seeded(["a", "b"], 7, least=5) == [SeededPrompt("ababa"[i], 7 + i, (1, 2, 3, 4, 1)[i]) for i in range(5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds 0 different prompts. Expected 1 to"),
        (b" \n\n", "holds 0 different prompts"),
        (b"\xff\xfe\x00", "cannot be read.*UTF-8"),
        (b"\n".join(b"prompt %d" % i for i in range(300)), "holds 300 different prompts"),
        (b"a cat\na snow leopard on a rocky ledge\n", "1 of the prompts that judge.*snow leopard"),
    ],
)
def test_calibration_prompts_that_cannot_be_used(small_checkpoint, tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        build(
            small_checkpoint,
            tmp_path / "out",
            BuildOptions(precision="int8", calibration=file),
            store=tmp_path / "store",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [{"allow_low_quality": True}, {"calibration": "x"}, {"precision": "int8", "batch_sizes": (2,)}],
)
def test_options_that_do_not_fit_int8_are_refused(small_checkpoint, tmp_path, options):
    with pytest.raises(InvalidRequest, match="int8"):
        build(small_checkpoint, tmp_path / "out", BuildOptions(**options), store=tmp_path / "store")


def test_a_measurement_is_made_once_and_again_when_its_file_is_damaged(tmp_path):
    count = iter(range(9))
    parts = {"kind": "test", "of": 1}

    def ask(parts):
        return remembered(tmp_path, parts, lambda: {"value": next(count)})["value"]

    assert [ask(parts), ask(parts), ask(parts | {"of": 2})] == [0, 0, 1]
    (file,) = [file for file in tmp_path.iterdir() if '"value": 0' in file.read_text()]
    file.write_text(file.read_text().replace('"value": 0', '"value": 5'))
    assert ask(parts) == 2


@pytest.fixture(scope="module")
def little_work():
    """The small model is judged on two prompts, calibrated on three, and every tenth layer may be in int8."""
    with pytest.MonkeyPatch.context() as patch:
        few = Prompts(prompts._general().calibration[:3], prompts._general().judging[:2])
        patch.setattr(build_module, "prompts_for", lambda *_: few)
        patch.setattr(recipe, "CALIBRATION_PICTURES", 3)
        patch.setattr(recipe, "layers_of", lambda model: layers_of(model)[::10])
        yield


@pytest.fixture(scope="module")
def fp32_stages(batched_build, tmp_path_factory):
    """A store with the stages that are made into int8."""
    return shutil.copytree(batched_build / "store", tmp_path_factory.mktemp("stages") / "store")


@pytest.fixture(scope="module")
def int8_bundle(small_checkpoint, fp32_stages, little_work, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "small"
    return build(small_checkpoint, out, INT8, store=fp32_stages)


def test_bundle_says_how_it_was_quantised(int8_bundle):
    assert int8_bundle.precision == "int8"
    assert int8_bundle.quality["prompts"] == 2
    assert int8_bundle.quality["passed"] == (int8_bundle.quality["median_psnr_db"] >= 28)
    report = json.loads((int8_bundle.path / "quantization.json").read_text())
    assert (len(report["pictures"]), len(report["calibration"])) == (2, 3)
    for name, least in (("denoiser", 9), ("decoder", 2)):
        stage = report["stages"][name]
        assert len(stage["damage"]) >= least
        assert stage["kept_fp32"] == [
            layer for layer, value in stage["damage"].items() if value > report["damage_limit"]
        ]
        model = ir.load(int8_bundle.graph(name, 2))
        read_in_8_bits = [
            node.name
            for node in model.graph
            if node.op_type in ("Conv", "MatMul") and node.inputs[1].producer() is not None
            and node.inputs[1].producer().op_type == "DequantizeLinear"
        ]  # fmt: skip
        assert read_in_8_bits == [layer for layer in stage["damage"] if layer not in stage["kept_fp32"]]
    assert set(int8_bundle.parity) == {"text_encoder", "encoder"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_is_drawn_in_int8(int8_bundle, backend):
    pipe = Pipeline.load(int8_bundle.path, backend)
    assert pipe.backend.precision == "int8"
    assert golden_distance(pipe) >= int8_bundle.golden.min_psnr
    both = pipe("a cat", num_images_per_prompt=2, num_inference_steps=2, output_type="np").images
    alone = pipe("a cat", seed=1, num_inference_steps=2, output_type="np").images[0]
    assert np.abs(both[1].astype(int) - alone).mean() < 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_int8_is_drawn_in_nothing_else(int8_bundle, backend, precision):
    with pytest.raises(BackendUnavailable, match="int8"):
        Pipeline.load(int8_bundle.path, backend, precision=precision)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_fp32_is_not_drawn_in_int8(small_bundle, backend):
    with pytest.raises(BackendUnavailable, match="--precision int8"):
        Pipeline.load(small_bundle.path, backend, precision="int8")


def test_a_build_again_measures_nothing(int8_bundle, small_checkpoint, fp32_stages, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured again")

    for name in ("measure_ranges", "measure_damage", "trajectory"):
        monkeypatch.setattr(recipe, name, refuse)
    again = build(small_checkpoint, tmp_path / "again", INT8, store=fp32_stages)
    assert again.bundle_id == int8_bundle.bundle_id
    monkeypatch.setattr(quality, "MIN_PSNR", 98.0)
    with pytest.raises(QualityError, match="No bundle was written"):
        options = dataclasses.replace(INT8, allow_low_quality=False)
        build(small_checkpoint, tmp_path / "refused", options, store=fp32_stages)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("passed", "psnr", "ok"), [(True, 28.5, True), (True, 27.5, False), (False, 12.0, True)])
def test_verify_holds_int8_to_the_gate_it_was_built_with(int8_bundle, monkeypatch, passed, psnr, ok):
    bundle = dataclasses.replace(int8_bundle, quality={**int8_bundle.quality, "passed": passed})
    distances = [(Asked(1), (psnr - 9, 90)), (Asked(2), (psnr, 80)), (Asked(3), (psnr, 80))]
    monkeypatch.setattr(verify, "_from_diffusers", lambda *_: [("onnxruntime", distances)])
    (line,) = verify.judge_against_diffusers(bundle, None)
    assert line["ok"] == ok
    assert ("--allow-low-quality" in line["expected"]) != passed


def test_info_tells_the_quality(int8_bundle):
    told = CliRunner().invoke(cli, ["info", "--bundle", str(int8_bundle.path)])
    assert f"median {int8_bundle.quality['median_psnr_db']:.1f} dB" in told.output
    document = json.loads(CliRunner().invoke(cli, ["info", "--bundle", str(int8_bundle.path), "--json"]).output)
    assert document["quality"] == int8_bundle.quality


def test_a_bundle_whose_quality_lacks_a_figure_is_refused(int8_bundle, tmp_path):
    manifest = json.loads((int8_bundle.path / "bundle.json").read_text())
    del manifest["quality"]["worst_ssim"]
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="quality: worst_ssim is missing"):
        Bundle.load(tmp_path)
