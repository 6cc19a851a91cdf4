import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdturbo import Bundle, BundleError, InvalidRequest
from sdturbo.bundle.description import DTYPES, STAGES, GraphName, identity
from sdturbo.bundle.manifest import parse_manifest

MANIFEST = "bundle.json"


@pytest.fixture
def root(bundle_dir, tmp_path):
    return shutil.copytree(bundle_dir, tmp_path / "bundle")


def manifest_of(root):
    return json.loads((root / MANIFEST).read_bytes())


def write(root, manifest, *, signed=False):
    if signed:
        manifest = {**manifest, "bundle_id": identity(manifest)}
    (root / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def replaced(tree, path, value):
    """`tree` with the value at `path` replaced."""
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value) if path[1:] else value
    return copy


def paths(tree, path=()):
    """The path of every value in a JSON document."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


def faults_of(root):
    with pytest.raises(BundleError) as error:
        Bundle.load(root)
    assert all(fault in str(error.value) for fault in error.value.faults)
    return list(error.value.faults)


def replace_file(root, name, data):
    """Write a file, and the manifest to match."""
    (root / name).write_bytes(data)
    files = manifest_of(root)["files"]
    files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    write(root, {**manifest_of(root), "files": files}, signed=True)


def test_what_was_written_is_read(make_bundle):
    root = make_bundle((1, 2, 4))
    bundle, manifest = Bundle.load(str(root)), manifest_of(root)
    assert bundle.bundle_id == manifest["bundle_id"]
    assert (bundle.height, bundle.width, bundle.precision, bundle.batch_sizes) == (64, 64, "fp32", (1, 2, 4))
    assert tuple(bundle.stages) == STAGES
    assert [spec.name for spec in bundle.stages["denoiser"].inputs] == ["latents", "prompt_embeds", "step"]
    assert bundle.stages["denoiser"].inputs[0].shape_at(2) == (2, 4, 8, 8)
    assert ["B" in spec.shape for spec in bundle.stages["denoiser"].inputs] == [True, True, False]
    assert bundle.graph("decoder", 4) == root / "onnx/decoder.4.onnx"
    assert bundle.golden.image in bundle.files


def format_1(manifest):
    """The same bundle as format 1 described it."""
    numbers = {"H": 64, "W": 64, "H/8": 8, "W/8": 8}
    stages = {
        name: {
            "graphs": {str(graph["batch_size"]): graph["file"] for graph in stage["graphs"]},
            **{
                key: [{**spec, "shape": [numbers.get(size, size) for size in spec["shape"]]} for spec in stage[key]]
                for key in ("inputs", "outputs")
            },
        }
        for name, stage in manifest["stages"].items()
    }
    (image,) = manifest["sizes"]
    kept = {key: value for key, value in manifest.items() if key != "sizes"}
    return {**kept, "format": 1, "image": image, "stages": stages}


def test_a_bundle_of_format_1_is_read_as_before(make_bundle):
    root = make_bundle((1, 2))
    newer = Bundle.load(root)
    older = format_1(manifest_of(root))
    write(root, older, signed=True)
    bundle = Bundle.load(root)
    assert bundle.bundle_id != newer.bundle_id
    assert (bundle.height, bundle.width, bundle.batch_sizes) == (64, 64, (1, 2))
    for name, stage in bundle.stages.items():
        assert (stage.inputs, stage.outputs) == (newer.stages[name].inputs, newer.stages[name].outputs)
        assert [bundle.graph(name, size) for size in (1, 2)] == [newer.graph(name, size) for size in (1, 2)]
    write(root, replaced(older, ("stages", "decoder", "graphs"), {"1": "onnx/decoder.1.onnx"}), signed=True)
    assert faults_of(root) == ["stages.decoder: no graph for batch size 2"]


def test_the_manifest_of_the_first_embedded_model_is_understood():
    """As the exporter wrote it in format 1. Its id is checked on the way."""
    manifest = json.loads(Path(__file__).with_name("bundle_format_1.json").read_bytes())
    faults = []
    fields = parse_manifest(manifest, faults)
    assert faults == []
    assert fields["bundle_id"] == "1a3e0b90d4031c28"
    assert fields["sizes"] == ((512, 512),)
    assert fields["stages"]["encoder"].graph(GraphName(1, 512, 512)) == "onnx/encoder.onnx"


def test_a_graph_is_named_by_batch_size_picture_size_and_form(root):
    manifest = manifest_of(root)
    for name, stage in manifest["stages"].items():
        graph = stage["graphs"][0]
        if name != "text_encoder":
            stage["graphs"] += [{**graph, "height": 96, "width": 64}, {**graph, "form": "fused"}]
    manifest["sizes"].append({"height": 96, "width": 64})
    write(root, manifest, signed=True)
    bundle = Bundle.load(root)
    assert bundle.sizes == ((64, 64), (96, 64))
    assert bundle.stages["denoiser"].inputs[0].shape == ("B", 4, 8, 8)
    assert bundle.declared["denoiser"].at(96, 64).inputs[0].shape_at(2) == (2, 4, 12, 8)
    assert bundle.graph("decoder", 1, height=96, width=64) == root / "onnx/decoder.1.onnx"
    assert bundle.graph("decoder", 1, form="fused") == root / "onnx/decoder.1.onnx"
    assert bundle.graph("text_encoder", 1, height=96, width=64) == root / "onnx/text_encoder.1.onnx"
    for absent in ({"height": 96, "width": 96}, {"form": "other"}, {"height": 96, "width": 64, "form": "fused"}):
        with pytest.raises(InvalidRequest, match=r"has no graph GraphName\(.*\) of the decoder. It has "):
            bundle.graph("decoder", 1, **absent)


def test_two_graphs_of_one_name_are_a_fault(root):
    manifest = manifest_of(root)
    manifest["stages"]["decoder"]["graphs"] *= 2
    write(root, manifest, signed=True)
    assert "stages.decoder.graphs[1] is named as another graph" in faults_of(root)[0]


def test_steps_are_the_rows_of_one_run(bundle_dir):
    bundle = Bundle.load(bundle_dir)
    assert [bundle.steps(n) for n in (1, 2, 3, 4)] == [range(1), range(1, 3), range(3, 6), range(6, 10)]
    assert [bundle.schedule[row].timestep for row in bundle.steps(3)] == [999, 666, 332]
    assert bundle.schedule[5].sigma_next == 0


def test_a_moved_bundle_keeps_its_id(bundle_dir, root):
    assert Bundle.load(root).bundle_id == Bundle.load(bundle_dir).bundle_id


@pytest.mark.parametrize("key", ["model", "precision", "sizes", "batch_sizes", "schedule", "stages"])
def test_the_id_depends_on_what_decides_the_pictures(bundle_dir, key):
    manifest = manifest_of(bundle_dir)
    assert identity({**manifest, key: "other"}) != manifest["bundle_id"]


@pytest.mark.parametrize("name", ["onnx/denoiser.1.onnx", "onnx/weights.data", "tokenizer.json"])
def test_the_id_depends_on_the_files_that_decide_the_pictures(bundle_dir, name):
    manifest = manifest_of(bundle_dir)
    assert identity(replaced(manifest, ("files", name, "sha256"), "0" * 64)) != manifest["bundle_id"]


@pytest.mark.parametrize("path", ["missing", "missing/bundle", "a\0b", "\ud800", "x" * 5000])
def test_a_missing_directory_is_refused(tmp_path, path):
    assert len(faults_of(tmp_path / path)) == 1


def test_a_directory_without_manifest_is_refused(tmp_path):
    assert "holds no bundle.json" in faults_of(tmp_path)[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"format": 1,}',
        b"1" * 5000,
        b'{"format": 1' + b"0" * 5000,
        b"[" * 10**5,
        b'{"a":' * 10**5,
    ],
)
def test_a_manifest_that_is_no_json_is_refused(root, data):
    (root / MANIFEST).write_bytes(data)
    assert "bundle.json cannot be read" in faults_of(root)[0]


@pytest.mark.parametrize("depth", range(940, 1000, 10))
def test_deep_nesting_is_refused(root, depth):
    nested = "[" * depth + "]" * depth
    (root / MANIFEST).write_text(f'{{"format": 1, "model": {nested}, "stages": {{"decoder": {nested}}}}}')
    assert faults_of(root)


@pytest.mark.parametrize("revision", ["1", True, 0, -1, 1.0, None, [1]])
def test_an_unknown_format_is_refused(root, revision):
    write(root, {**manifest_of(root), "format": revision})
    assert f"has format {revision!r}, expected a whole number up to 2" in faults_of(root)[0]


@pytest.mark.parametrize("manifest", [[], [{"format": 1}], None, "text", 1, {}])
def test_a_manifest_that_is_no_object_with_a_format_is_refused(root, manifest):
    write(root, manifest)
    assert "has format None" in faults_of(root)[0]


def test_a_newer_format_asks_for_an_upgrade(root):
    write(root, {**manifest_of(root), "format": 3})
    assert "upgrade sdturbo" in faults_of(root)[0]


def test_all_damaged_files_are_listed_at_once(root):
    (root / "onnx/decoder.1.onnx").unlink()
    os.truncate(root / "onnx/weights.data", 5)
    data = bytearray((root / "tokenizer.json").read_bytes())
    data[1000] ^= 1
    (root / "tokenizer.json").write_bytes(data)
    (root / "golden.png").unlink()
    (root / "golden.png").mkdir()
    faults = faults_of(root)
    assert len(faults) == 5
    assert "onnx/decoder.1.onnx is missing" in faults
    assert "golden.png is missing" in faults
    assert "onnx/weights.data has 5 bytes, expected 32: truncated or replaced" in faults
    assert any(fault.startswith("tokenizer.json was altered") for fault in faults)
    assert "build the bundle again" in faults[-1]


def test_a_symlink_may_not_lead_outside(root, tmp_path):
    shutil.move(root / "onnx/weights.data", tmp_path / "weights.data")
    (root / "onnx/weights.data").symlink_to(tmp_path / "weights.data")
    assert "onnx/weights.data leads out of the bundle" in faults_of(root)[0]


def test_a_symlink_may_lead_inside(root):
    shutil.move(root / "onnx/weights.data", root / "shared.data")
    (root / "onnx/weights.data").symlink_to("../shared.data")
    assert Bundle.load(root).path == root


def test_a_symlink_loop_is_a_missing_file(root):
    (root / "golden.png").unlink()
    (root / "golden.png").symlink_to("golden.png")
    assert "golden.png is missing" in faults_of(root)


@pytest.mark.parametrize(
    "name", ["../secret", "onnx/../../secret", "/etc/passwd", "..\\secret", "C:/secret", "C:secret"]
)
def test_listed_files_may_not_lead_outside(root, name):
    manifest = manifest_of(root)
    write(root, replaced(manifest, ("files",), {**manifest["files"], name: {"sha256": "0", "size": 0}}), signed=True)
    assert f"files: {name!r} leads out of the bundle" in faults_of(root)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 300, "x/" * 3000, "\ud800", "tokenizer.json/x"])
def test_listed_files_that_cannot_exist_are_faults(root, name):
    manifest = manifest_of(root)
    write(root, replaced(manifest, ("files",), {**manifest["files"], name: {"sha256": "0", "size": 0}}), signed=True)
    assert any(fault.startswith(name) for fault in faults_of(root))


@pytest.mark.parametrize("location", ["/etc/hostname", "../../weights.data", "unlisted.data", "../onnx/weights.data"])
def test_weights_outside_the_bundle_are_refused(root, location):
    (root / "onnx/unlisted.data").touch()
    model = onnx.load(root / "onnx/text_encoder.1.onnx", load_external_data=False)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.external_data)
    weight.external_data[0].value = location
    replace_file(root, "onnx/text_encoder.1.onnx", model.SerializeToString())
    assert faults_of(root) == [
        f"onnx/text_encoder.1.onnx reads weights from {location!r}, which is not a file of this bundle"
    ]


def test_a_graph_that_is_no_onnx_file_is_refused(root):
    replace_file(root, "onnx/decoder.1.onnx", b"<xml/>")
    assert faults_of(root)[0].startswith("onnx/decoder.1.onnx is not an ONNX file")


@pytest.mark.parametrize("key", ["model", "precision", "batch_sizes", "schedule", "stages", "sizes"])
def test_an_edited_manifest_is_noticed(root, key):
    edits = {
        "model": {"name": "better"},
        "precision": "fp16",
        "batch_sizes": [1, 1],
        "schedule": {**manifest_of(root)["schedule"], "note": ""},
        "stages": {**manifest_of(root)["stages"], "upscaler": {}},
        "sizes": [{"height": 64, "width": 64, "note": ""}],
    }
    write(root, {**manifest_of(root), key: edits[key]})
    assert "bundle.json was edited" in faults_of(root)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_needed(root, stage):
    manifest = manifest_of(root)
    del manifest["stages"][stage]
    write(root, manifest, signed=True)
    assert faults_of(root) == [f"stage {stage} is missing"]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("batch_sizes",), [], "batch_sizes"),
        (("batch_sizes",), [0], "batch_sizes"),
        (("batch_sizes",), ["1"], "batch_sizes"),
        (("batch_sizes",), [1, 2], "stages.decoder: no graph for batch size 2 and 64x64 pixels"),
        (("batch_sizes",), [1, 2], "stages.text_encoder: no graph for batch size 2"),
        (("stages", "decoder", "graphs", 0, "file"), "onnx/other.onnx", "'onnx/other.onnx' is not a listed file"),
        (("stages", "decoder", "graphs", 0, "file"), ["onnx/decoder.1.onnx"], "expected str"),
        (("stages", "decoder", "graphs", 0, "form"), "fused", "no graph for batch size 1 and 64x64 pixels"),
        (("stages", "decoder", "graphs", 0, "height"), 72, "no graph for batch size 1 and 64x64 pixels"),
        (("stages", "decoder", "graphs", 0, "height"), 0, "has 0x64, expected a height and a width"),
        (("stages", "text_encoder", "graphs", 0, "height"), 64, "no graph for batch size 1"),
        (("stages", "decoder", "graphs", 0), {}, "batch_size is missing"),
        (("stages", "decoder", "graphs"), {"1": "onnx/decoder.1.onnx"}, "expected list"),
        (("stages", "decoder", "inputs"), [], "stages.decoder.inputs is empty"),
        (("stages", "decoder", "inputs", 0, "dtype"), "bfloat16", f"expected one of {', '.join(DTYPES)}"),
        (("stages", "decoder", "inputs", 0, "shape"), ["B", -1], "expected positive sizes"),
        (("stages", "decoder", "inputs", 0, "shape"), ["N", 4], "expected positive sizes"),
        (("schedule", "rows"), [], "schedule.rows must hold the runs of 1 to 4 steps"),
        (("schedule", "rows", 0, "sigma"), "14.6", "schedule.rows[0]: sigma is '14.6', expected number"),
        (("schedule", "rows", 0, "sigma"), True, "schedule.rows[0]: sigma is True, expected number"),
        (("sizes",), [], "sizes is empty"),
        (("sizes", 0, "height"), 72, "no graph for batch size 1 and 72x64 pixels"),
        (("sizes", 0, "width"), 0, "sizes[0] is 64x0"),
        (("sizes", 0, "width"), 68, "sizes[0] is 64x68, expected multiples of 8"),
        (("stages", "decoder", "outputs", 0, "shape"), ["B", 3, "H", "W"], "not one picture of 64x64"),
        (("golden", "image"), "other.png", "files does not list other.png"),
        (("model",), {}, "model: name is missing"),
        (("precision",), None, "precision is None, expected str"),
        (("weight_format",), "int4", "weight_format is 'int4', expected fp32 or fp16"),
        (("weight_format",), 16, "weight_format is 16, expected str"),
    ],
)
def test_a_wrong_value_is_named(root, path, value, fault):
    write(root, replaced(manifest_of(root), path, value), signed=True)
    assert any(fault in line for line in faults_of(root))


def test_all_wrong_values_are_listed_at_once(root):
    manifest = manifest_of(root)
    del manifest["precision"], manifest["stages"]["encoder"]
    manifest["golden"]["seed"] = "0"
    manifest["files"]["tokenizer.json"]["size"] = None
    write(root, manifest)
    assert [fault.split(" is ")[0] for fault in faults_of(root)] == [
        "files['tokenizer.json']: size",
        "stage encoder",
        "bundle.json: precision",
        "golden: seed",
    ]


ODD = st.sampled_from([10**400, "B", "\ud800", "\0", "..", "x" * 300])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | ODD,
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(["1", "name", "", "x"]), values),
    max_leaves=5,
)


@pytest.fixture(scope="module", params=[1, 2])
def scratch(make_bundle, request):
    """A bundle of either format whose manifest is written anew for each example."""
    root = make_bundle()
    if request.param == 1:
        write(root, format_1(manifest_of(root)), signed=True)
    return root, manifest_of(root), Bundle.load(root)


@settings(max_examples=150)
@given(data=st.data(), junk=JUNK, signed=st.booleans())
def test_junk_anywhere_is_a_bundle_error_or_changes_no_picture(scratch, data, junk, signed):
    root, manifest, original = scratch
    edited = replaced(manifest, data.draw(st.sampled_from(list(paths(manifest)))), junk)
    try:
        write(root, edited, signed=signed)
    except (TypeError, KeyError, AttributeError):  # too broken to have an id
        write(root, edited)
    try:
        bundle = Bundle.load(root)
    except BundleError as error:
        assert error.faults
    else:
        assert signed or dataclasses.replace(bundle, golden=original.golden, parity=original.parity) == original
