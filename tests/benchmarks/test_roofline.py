"""Work counted by hand beside work counted from graphs, and the bounds made of it."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks import ceiling, measure, roofline
from benchmarks.flops import Operation, count, flops
from benchmarks.gpus import GPUS, lower_bound
from benchmarks.tables import document_tables
from sdturbo import backends
from sdturbo.bundle import Bundle
from sdturbo.errors import BackendUnavailable, InvalidRequest

# GFLOP 10, 40, 100
WORK = {
    "text_encoder": [Operation("t", "matmul", 10 * 10**9, 10**6, 10**6)],
    "denoiser": [Operation("d", "attention", 40 * 10**9, 0, 10**6)],
    "decoder": [Operation(name, "conv", 50 * 10**9, 10**6, 10**8) for name in "xy"],
}


def parse(text, opset=20):
    """The parser takes what is declared with no value for a mere note of a shape: those get zeros as values."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    made = {name for node in model.graph.node for name in node.output}
    for value in [value for value in model.graph.value_info if value.name not in made]:
        kind = value.type.tensor_type
        shape = [size.dim_value for size in kind.shape.dim]
        zeros = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, value.name))
    return model


# (graph, multiply-adds by hand, kind, elements of weights, elements of activations)
BY_HAND = {
    "convolution, 3x3, stride 2": (
        """(float[2,8,10,10] x) => (float[2,16,5,5] y) <float[16,8,3,3] w>
        { y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }""",
        2 * 16 * 5 * 5 * 8 * 9,
        "conv",
        16 * 8 * 9,
        2 * 8 * 100 + 2 * 16 * 25,
    ),
    "depthwise convolution": (
        """(float[1,8,10,10] x) => (float[1,8,10,10] y) <float[8,1,3,3] w>
        { y = Conv <group = 8, pads = [1, 1, 1, 1]> (x, w) }""",
        8 * 100 * 9,
        "conv",
        72,
        1600,
    ),
    "transposed convolution": (
        """(float[1,8,10,10] x) => (float[1,6,20,20] y) <float[8,6,4,4] w>
        { y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }""",
        8 * 100 * 6 * 16,
        "conv",
        8 * 6 * 16,
        800 + 2400,
    ),
    "matrix product with a weight": (
        "(float[3,7,5] x) => (float[3,7,11] y) <float[5,11] w> { y = MatMul (x, w) }",
        3 * 7 * 5 * 11,
        "matmul",
        55,
        105 + 231,
    ),
    "Gemm, transposed": (
        """(float[5,7] x) => (float[7,11] y) <float[11,5] w, float[11] b>
        { y = Gemm <transA = 1, transB = 1> (x, w, b) }""",
        7 * 5 * 11,
        "matmul",
        55,
        35 + 77,
    ),
    "product of two activations": (
        "(float[2,7,5] x, float[2,5,9] z) => (float[2,7,9] y) { y = MatMul (x, z) }",
        2 * 7 * 5 * 9,
        "attention",
        0,
        70 + 90 + 126,
    ),
    "attention of opset 23": (
        """(float[1,2,6,4] q, float[1,2,9,4] k, float[1,2,9,5] v) => (float[1,2,6,5] y)
        { y = Attention (q, k, v) }""",
        2 * 6 * 9 * (4 + 5),
        "attention",
        0,
        48 + 72 + 90 + 60,
    ),
    "weight stored in half": (
        """(float[7,5] x) => (float[7,11] y) <float16[5,11] w>
        { f = Cast <to = 1> (w) y = MatMul (x, f) }""",
        7 * 5 * 11,
        "matmul",
        55,
        35 + 77,
    ),
    "quantised convolution": (
        """(uint8[1,4,6,6] x) => (uint8[1,3,6,6] y)
        <float s = {0.1}, uint8 z = {0}, int8[3,4,1,1] w, float t = {0.1}, int8 u = {0}>
        { y = QLinearConv (x, s, z, w, t, u, s, z) }""",
        3 * 36 * 4,
        "conv",
        12,
        144 + 108,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_work_is_what_the_hand_computes(name):
    text, multiply_adds, kind, weights, activations = BY_HAND[name]
    (one,) = count(parse(text, 23))
    assert (one.flops, one.kind, one.weights, one.activations) == (2 * multiply_adds, kind, weights, activations)


def test_scores_of_an_attention_do_not_move():
    model = parse("""(float[1,6,4] q, float[1,4,9] k, float[1,9,5] v) => (float[1,6,5] y) <float scale = {0.5}> {
        s = MatMul (q, k)
        t = Mul (s, scale)
        p = Softmax <axis = -1> (t)
        y = MatMul (p, v)
    }""")
    first, second = count(model)
    assert (first.flops, second.flops) == (2 * 6 * 4 * 9, 2 * 6 * 9 * 5)
    assert (first.activations, second.activations) == (24 + 36, 45 + 30)


def test_shapes_that_the_file_leaves_out_are_inferred():
    model = parse("""(float[1,4,8,8] x) => (float[1,2,8,8] y) <float[3,4,1,1] w, float[2,3,1,1] u> {
        v = Conv (x, w)
        y = Conv (v, u)
    }""")
    assert "v" not in {value.name for value in model.graph.value_info}
    assert [one.flops for one in count(model)] == [2 * 64 * 12, 2 * 64 * 6]


def test_what_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match="not known"):
        count(parse("(float[N,4] x) => (float[N,4] y) <float[4,4] w> { y = MatMul (x, w) }"))
    with pytest.raises(ValueError, match="graph of its own"):
        count(
            parse("""(bool c, float[4,4] x) => (float[4,4] y) {
            y = If (c) <then_branch = a () => (float[4,4] s) { s = MatMul (x, x) },
                        else_branch = b () => (float[4,4] t) { t = Identity (x) }>
        }""")
        )


def test_bound_is_the_larger_of_compute_and_memory():
    gpu = GPUS["t4"]
    busy = Operation("a", "conv", 65 * 10**12, 0, 160)
    starved = Operation("b", "conv", 65, 160 * 10**9, 0)
    assert lower_bound([busy], gpu) == pytest.approx(1.0)
    assert lower_bound([starved], gpu) == pytest.approx(1.0)
    assert lower_bound([busy, starved], gpu) == pytest.approx(2.0)


@pytest.mark.parametrize("gpu", GPUS)
def test_paper_says_where_the_peaks_are_from_and_sums_up(gpu):
    text = roofline.paper(WORK, GPUS[gpu])
    assert GPUS[gpu].source in text
    (whole,) = (line for line in text.splitlines() if line.startswith("| whole"))
    every = [one for found in WORK.values() for one in found]
    assert float(whole.split("|")[-2]) == pytest.approx(1e3 * lower_bound(every, GPUS[gpu]), abs=0.006)


@pytest.mark.parametrize("kind", ["conv", "matmul"])
@pytest.mark.parametrize("quantized", [False, True])
def test_ceiling_graphs_run_and_are_counted(kind, quantized):
    width, size = (32, 16) if kind == "conv" else (64, 32)
    model, stage = ceiling.chain(kind, width, size, quantized=quantized)
    onnx.checker.check_model(model)
    inner = 2 * size * size * width * width * 9 if kind == "conv" else 2 * width * size * size
    ends = 2 * 2 * size * size * width * 4 if kind == "conv" else 2 * 2 * width * size * 4
    assert flops(count(model)) == ceiling.DEPTH * inner + ends
    for backend in ceiling.LIBRARIES:
        assert ceiling.rate(model, stage, backends.connect(backends.BackendChoice(backend, precision="fp32")), 0.0) > 0


def test_int8_products_are_quantised_for_real():
    exact, stage = ceiling.chain("matmul", 64, 32, quantized=False)
    rough, _ = ceiling.chain("matmul", 64, 32, quantized=True)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in rough.graph.node}
    assert {tensor.data_type for tensor in rough.graph.initializer} == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert not any("Quantize" in node.op_type for node in exact.graph.node)
    assert stage.inputs[0].shape == (1, 64, 4)


def test_a_precision_the_cpu_lacks_says_so(monkeypatch):
    monkeypatch.setattr(ceiling, "report", lambda: {"cpu": {"features": ["avx2"]}})
    with pytest.raises(BackendUnavailable, match="no int8 dot products"):
        ceiling.ceilings("int8", 1)


def test_shares_of_the_ceiling(bundle_dir, tmp_path, monkeypatch):
    def rates(precision, threads):
        if precision != "fp32":
            raise BackendUnavailable(f"no {precision} here")
        return {"conv": 200e9, "matmul": 100e9}

    parts = {name: {"median": 1000.0} for name in ("text_encoder", "denoiser", "decoder", "total")}
    monkeypatch.setattr(ceiling, "ceilings", rates)
    monkeypatch.setattr(roofline, "work_of", lambda bundle: WORK)
    monkeypatch.setattr(roofline, "engines", lambda bundle: [("onnxruntime", "fp32")])
    monkeypatch.setattr(measure, "run", lambda *_: {"parts_ms": parts})
    document = roofline.run(bundle_dir, tmp_path, 1, 1)
    assert document["rows"][-1]["stages"]["whole"] == {"flops": 150 * 10**9, "seconds": 1.0}
    text = document_tables(document)
    assert "int8: no int8 here" in text
    assert [line.split("|")[-2].strip() for line in text.splitlines()[-4:]] == ["5 %", "20 %", "50 %", "75 %"]


def test_fake_graphs_hold_no_products(bundle_dir):
    assert roofline.work_of(Bundle.load(bundle_dir)) == {name: [] for name in roofline.STAGES}


def test_bundles_without_batch_one_are_refused(make_bundle):
    with pytest.raises(InvalidRequest, match="Expected 1"):
        roofline.work_of(Bundle.load(make_bundle((2,))))


@pytest.mark.full
def test_full_size_work_and_bounds_are_the_published_ones():
    """Counted by other means beforehand: GFLOP a stage, and bounds in ms on paper. Needs `make engines MODEL=seeded`."""
    bundle = Bundle.load(Path("build/seeded"))
    work = roofline.work_of(bundle)
    assert flops(work["text_encoder"]) == pytest.approx(45e9, rel=0.02)
    assert flops(work["denoiser"]) <= 804e9 * 1.01
    assert flops(work["denoiser"], "attention") == pytest.approx(124e9, rel=0.03)
    assert flops(work["decoder"]) <= 2515e9 * 1.01
    every = [one for found in work.values() for one in found]
    for gpu, bound in (("h100", 3.95), ("a100", 11.3), ("4090", 21.5), ("t4", 56)):
        assert 0.8 * bound <= 1e3 * lower_bound(every, GPUS[gpu]) <= 1.01 * bound
    assert np.isfinite(lower_bound(every, GPUS["l4"]))
