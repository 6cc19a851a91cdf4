import dataclasses
import hashlib
import json
import os
import shutil

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdturbo import Bundle, BundleError
from sdturbo.bundle.description import DTYPES, STAGES, identity

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
    assert [spec.is_batched for spec in bundle.stages["denoiser"].inputs] == [True, True, False]
    assert bundle.graph("decoder", 4) == root / "onnx/decoder.4.onnx"
    assert bundle.golden.image in bundle.files


def test_steps_are_the_rows_of_one_run(bundle_dir):
    bundle = Bundle.load(bundle_dir)
    assert [bundle.steps(n) for n in (1, 2, 3, 4)] == [range(1), range(1, 3), range(3, 6), range(6, 10)]
    assert [bundle.schedule[row].timestep for row in bundle.steps(3)] == [999, 666, 332]
    assert bundle.schedule[5].sigma_next == 0


def test_a_moved_bundle_keeps_its_id(bundle_dir, root):
    assert Bundle.load(root).bundle_id == Bundle.load(bundle_dir).bundle_id


@pytest.mark.parametrize("key", ["model", "precision", "image", "batch_sizes", "schedule", "stages"])
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
    assert f"has format {revision!r}, expected a whole number up to 1" in faults_of(root)[0]


@pytest.mark.parametrize("manifest", [[], [{"format": 1}], None, "text", 1, {}])
def test_a_manifest_that_is_no_object_with_a_format_is_refused(root, manifest):
    write(root, manifest)
    assert "has format None" in faults_of(root)[0]


def test_a_newer_format_asks_for_an_upgrade(root):
    write(root, {**manifest_of(root), "format": 2})
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


@pytest.mark.parametrize("name", ["../secret", "onnx/../../secret", "/etc/passwd", "..\\secret"])
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


@pytest.mark.parametrize("key", ["model", "precision", "batch_sizes", "schedule", "stages", "image"])
def test_an_edited_manifest_is_noticed(root, key):
    edits = {
        "model": {"name": "better"},
        "precision": "fp16",
        "batch_sizes": [1, 1],
        "schedule": {**manifest_of(root)["schedule"], "note": ""},
        "stages": {**manifest_of(root)["stages"], "upscaler": {}},
        "image": {"height": 64, "width": 64, "note": ""},
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
        (("batch_sizes",), [1, 2], "no listed graph for batch size 2"),
        (("stages", "decoder", "graphs"), {"1": "onnx/other.onnx"}, "found 'onnx/other.onnx'"),
        (("stages", "decoder", "graphs"), {"1": ["onnx/decoder.1.onnx"]}, "no listed graph for batch size 1"),
        (("stages", "decoder", "graphs"), {"1": {}}, "no listed graph for batch size 1"),
        (("stages", "decoder", "inputs"), [], "stages.decoder.inputs is empty"),
        (("stages", "decoder", "inputs", 0, "dtype"), "bfloat16", f"expected one of {', '.join(DTYPES)}"),
        (("stages", "decoder", "inputs", 0, "shape"), ["B", -1], "expected positive sizes"),
        (("stages", "decoder", "inputs", 0, "shape"), ["N", 4], "expected positive sizes"),
        (("schedule", "rows"), [], "schedule.rows must hold the runs of 1 to 4 steps"),
        (("schedule", "rows", 0, "sigma"), "14.6", "schedule.rows[0]: sigma is '14.6', expected number"),
        (("schedule", "rows", 0, "sigma"), True, "schedule.rows[0]: sigma is True, expected number"),
        (("image", "height"), 72, "72x64"),
        (("image", "width"), 0, "64x0"),
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


@pytest.fixture(scope="module")
def scratch(make_bundle):
    """A bundle whose manifest is written anew for each example."""
    root = make_bundle()
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
