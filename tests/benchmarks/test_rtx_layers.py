"""The builder's log of TensorRT for RTX as layers, on a log shortened by hand. `make test-tensorrt` reads a real one."""

import json
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from benchmarks.gpu import rtx_layers
from benchmarks.gpu.rtx_layers import FP32, Layer, Summary, Tensor, nodes_of, parse_layers, summarise
from sdturbo.errors import BackendUnavailable
from sdturbo_export.errors import BuildError

LOG = (Path(__file__).parent / "rtx_builder_log.txt").read_text(encoding="utf-8")
PICTURE = 64 * 64 * 64  # elements of the log's largest tensors
NORMS = {"node_InstanceNormalization_13", "node_InstanceNormalization_37"}
SOFTMAXES = {"node_softmax", "node_softmax_1"}


def test_the_layers_are_those_of_the_last_build():
    layers = parse_layers(LOG)
    assert [(layer.group, layer.kind) for layer in layers] == [
        ("correlation", "correlation"),
        ("__myl_Move", "kgen"),
        ("__myl_CastGnor", "kgen"),
        ("__myl_CastGnor", "kgen"),
        ("_gemm_mha_v2", "kgen"),
        ("__myl_CastMaxrSubExpSumDivMulCast", "kgen"),
    ]
    assert layers[2].nodes == {"node__to_copy_1", "node_InstanceNormalization_13", "node_group_norm"}
    assert layers[1].nodes == set()


def test_bytes_are_those_of_every_tensor_once():
    convolution, move, norm, *_ = parse_layers(LOG)
    weights = 64 * 4 * 3 * 3
    assert convolution.size == 2 * 4 * 64 * 64 + 2 * weights + 8 + 2 * PICTURE  # its input is listed twice
    assert move.size == 4 * 64
    assert norm.size == 4 * 64 + 2 * PICTURE + 4 * 64 + 4 * PICTURE


def test_attentions_and_norms_are_counted_by_the_graphs_nodes():
    layers = parse_layers(LOG)
    summary = summarise(layers, norms=NORMS, softmaxes=SOFTMAXES)
    assert summary == Summary(
        layers=6,
        size=sum(layer.size for layer in layers),
        fp32_size=4 * 64 + 4 * PICTURE,
        attentions=2,
        fused=1,
        norms=2,
        fp32_norms=1,
    )
    assert "1 of 2 attentions are fused. 1 of 2 norms write fp32" in str(summary)


@pytest.mark.parametrize(("size", "counted"), [(999_999, 0), (1_000_000, 1)])
def test_a_small_tensor_in_fp32_is_no_fault_of_a_norm(size, counted):
    layer = Layer("norm", "kgen", (), (Tensor("y", FP32, size),), frozenset({"a"}))
    assert summarise([layer], norms={"a"}, softmaxes=()).fp32_norms == counted


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "lists no layers"),
        ("Layers:\n\nI/O Tensors:\n", "lists no layers"),
        (LOG.replace("Datatype: Int32", "Datatype: Int2"), "datatype 'Int2'. Expected Float"),
        (LOG.replace("LayerType", "Kind"), "cannot be read: Name: node_conv2d_1_myl0_2, Kind"),
    ],
)
def test_a_log_of_another_form_is_refused(log, words):
    with pytest.raises(BuildError, match=words):
        parse_layers(log)


def test_norms_and_softmaxes_are_taken_from_the_graph(tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        g (float[1,4,8] x, float[4] w) => (float[1,4,8] y) { a = InstanceNormalization (x, w, w) y = Softmax (a) }""")
    for node in model.graph.node:
        node.name = f"node_{node.op_type}"
    onnx.save(model, tmp_path / "g.onnx")
    assert nodes_of(tmp_path / "g.onnx", rtx_layers.NORMS) == {"node_InstanceNormalization"}
    assert nodes_of(tmp_path / "g.onnx", rtx_layers.SOFTMAXES) == {"node_Softmax"}


def test_the_report_has_a_table_of_each_graph_and_one_document_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rtx_layers, "compile_layers", lambda graph, capability: parse_layers(LOG))
    monkeypatch.setattr(rtx_layers, "nodes_of", lambda graph, kinds: NORMS if kinds == rtx_layers.NORMS else SOFTMAXES)
    assert rtx_layers.main(["SM89", "a.onnx", "b.onnx"]) == 0
    *report, document = capsys.readouterr().out.splitlines()
    largest = next(line for line in report if line.startswith("| __myl_CastGnor"))
    assert [cell.strip() for cell in largest.strip("|").split("|")] == ["__myl_CastGnor", "2", "2.6"]
    graphs = json.loads(document)["graphs"]
    assert list(graphs) == ["a.onnx", "b.onnx"]
    assert graphs["a.onnx"]["fused"] == 1


def test_without_the_library_the_remedy_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match=r"pip install '\.\[tensorrt-rtx\]'"):
        rtx_layers.compile_layers(tmp_path / "g.onnx", "SM89")
    assert rtx_layers.main(["SM89", "g.onnx"]) == BackendUnavailable.exit_code
    assert "pip install" in capsys.readouterr().err
