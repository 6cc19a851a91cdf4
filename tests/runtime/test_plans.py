"""Compiled plans: what they were made for is checked, and so is every byte, before any library sees them."""

import dataclasses
import hashlib
import json
import multiprocessing
import shutil

import pytest

from sdturbo import BackendUnavailable, Bundle, BundleError
from sdturbo.bundle.plans import ANY, RTX, Plan, PlanKey, choose_plan, plan_bytes, read_plans
from sdturbo.errors import PlanMismatch
from sdturbo_export.tensorrt import plan_writer
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name

KEY = PlanKey("10.16.1.11", "8.9", "NVIDIA GeForce RTX 4090", "13.0", "0" * 64, "fp16")


@pytest.fixture
def bundle(bundle_dir, tmp_path):
    return Bundle.load(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def made(bundle, stage="decoder", data=b"a plan", median_ms=5.0, relative_l2=1e-3, **key):
    """A plan and its bytes."""
    key = dataclasses.replace(KEY, **{"onnx_sha256": bundle.graph_sha256(bundle.graph(stage, 1))} | key)
    return Plan(plan_name(key, stage, 1, data), stage, 1, key, relative_l2, median_ms), data


def made_ahead(bundle, capability, **options):
    """The same, compiled ahead."""
    ahead = {"gpu": ANY, "driver": ANY, "library": RTX, "tensorrt": "1.7.1.116", "compute_capability": capability}
    return made(bundle, relative_l2=None, median_ms=None, **ahead, **options)


def add(bundle, *plans, reports=()):
    return add_plans(bundle, dict(plans), dict(reports))


def edit(bundle, change):
    """Change bundle.json by hand."""
    path = bundle.path / "bundle.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_added_plans_are_read_back_and_change_nothing_else(bundle):
    plan, data = made(bundle)
    layers = plan.file.replace(".plan", ".layers.json")
    after = add(bundle, (plan, data), reports=[(layers, b"[]")])
    assert after.bundle_id == bundle.bundle_id
    assert {name: after.files[name] for name in bundle.files} == dict(bundle.files)
    assert set(after.files) - set(bundle.files) == {plan.file, layers}
    assert read_plans(after) == [plan]
    assert plan_bytes(after, plan) == data


def test_a_bundle_without_plans_has_none(bundle):
    assert read_plans(bundle) == []
    with pytest.raises(PlanMismatch, match=r"no TensorRT plan for the decoder at batch size 1.*sdturbo-export trt"):
        choose_plan(bundle, [], "decoder", 1, KEY)


def test_a_plan_takes_the_place_of_the_one_with_its_key_and_no_other(bundle):
    old, other = made(bundle, data=b"old"), made(bundle, data=b"other", gpu="NVIDIA A100")
    new = made(bundle, data=b"new")
    after = add(add(bundle, old, other, reports=[(old[0].file.replace(".plan", ".layers.json"), b"1")]), new)
    assert read_plans(after) == [other[0], new[0]]
    found = {
        file.relative_to(bundle.path).as_posix() for file in (bundle.path / "compiled").rglob("*.*") if file.is_file()
    }
    assert found == {other[0].file, new[0].file}


def test_a_writer_that_dies_before_the_manifest_leaves_the_bundle_whole(bundle, monkeypatch):
    old, new = made(bundle, data=b"old"), made(bundle, data=b"new")
    before = add(bundle, old)

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_writer.json, "dumps", die)
    with pytest.raises(KeyboardInterrupt):
        add(before, new)
    monkeypatch.undo()
    whole = Bundle.load(bundle.path)
    assert read_plans(whole) == [old[0]]
    assert plan_bytes(whole, old[0]) == b"old"
    after = add(whole, new)
    assert read_plans(after) == [new[0]]
    assert len(list((bundle.path / "compiled").rglob("*.plan"))) == 1


def _add_one(path, number):
    bundle = Bundle.load(path)
    add(bundle, made(bundle, data=b"%d" % number, gpu=f"GPU {number}"))


def test_writers_wait_for_each_other(bundle):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_one, args=(bundle.path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(plan.key.gpu for plan in read_plans(Bundle.load(bundle.path))) == [f"GPU {i}" for i in range(4)]


def test_a_plan_made_ahead_is_read_back_without_figures(bundle):
    plan, data = made_ahead(bundle, "7.5,8.9")
    after = add(bundle, (plan, data))
    (found,) = read_plans(after)
    assert found == plan
    assert (found.relative_l2, found.median_ms, found.key.capabilities) == (None, None, ("7.5", "8.9"))
    assert plan.file.startswith("compiled/tensorrt-rtx-1.7.1.116-sm75-89/")


def test_plans_of_before_that_name_no_library_are_tensorrts_and_are_replaced(bundle):
    old, data = made(bundle, data=b"old")
    add(bundle, (old, data))
    edit(bundle, lambda manifest: manifest["compiled"][0]["key"].pop("library"))
    before = Bundle.load(bundle.path)
    assert read_plans(before) == [old]
    new = made(bundle, data=b"new")
    assert read_plans(add(before, new)) == [new[0]]


def test_a_plan_made_ahead_fits_every_gpu_and_driver_of_its_compute_capabilities(bundle):
    plan, _ = made_ahead(bundle, "8.6,8.9")
    for change, differs in [
        ({}, []),
        ({"gpu": "other", "driver": "14.0", "compute_capability": "8.6"}, []),
        ({"compute_capability": "9.0"}, ["compute_capability"]),
        ({"compute_capability": "8"}, ["compute_capability"]),
        ({"tensorrt": "1.8.0.1"}, ["tensorrt"]),
        ({"library": "tensorrt", "tensorrt": "11.4.0.106"}, ["library"]),
    ]:
        here = {"gpu": "NVIDIA L4", "driver": "13.0", "compute_capability": "8.9"} | change
        assert plan.key.differences(dataclasses.replace(plan.key, **here)) == differs


def test_plans_without_a_time_come_last_and_the_one_for_fewer_cards_first(bundle):
    wide, narrow = made_ahead(bundle, "8.6,8.9,12.0")[0], made_ahead(bundle, "8.9", data=b"narrow")[0]
    machine = dataclasses.replace(narrow.key, gpu="NVIDIA L4", driver="13.0")
    assert choose_plan(bundle, [wide, narrow], "decoder", 1, machine) == narrow
    timed = dataclasses.replace(wide, file="timed", median_ms=9.0)
    assert choose_plan(bundle, [narrow, timed, wide], "decoder", 1, machine) == timed


OTHER = {
    "tensorrt": "10.16.1.12",
    "compute_capability": "8.6",
    "gpu": "NVIDIA A10",
    "driver": "13.1",
    "onnx_sha256": "1" * 64,
    "precision": "fp32",
}


@pytest.mark.parametrize("field", OTHER)
def test_each_field_of_the_key_is_checked_and_named(bundle, field):
    plan, _ = made(bundle)
    machine = dataclasses.replace(plan.key, **{field: OTHER[field]})
    with pytest.raises(PlanMismatch) as error:
        choose_plan(bundle, [plan], "decoder", 1, machine)
    assert str(error.value).count(" is ") == 1
    assert f"{field} is {OTHER[field]}, not {getattr(plan.key, field)}" in str(error.value)
    assert f"sdturbo-export trt {bundle.path}" in str(error.value)
    assert isinstance(error.value, BackendUnavailable)


def test_the_nearest_plan_is_named_and_the_fastest_that_fits_is_taken(bundle):
    slow, fast = made(bundle, data=b"slow", median_ms=9.0)[0], made(bundle, data=b"fast", median_ms=2.0)[0]
    far = made(bundle, data=b"far", gpu="other", driver="12.0", median_ms=1.0)[0]
    assert choose_plan(bundle, [far, slow, fast], "decoder", 1, slow.key) == fast
    with pytest.raises(PlanMismatch) as error:
        choose_plan(bundle, [far, slow], "decoder", 1, dataclasses.replace(slow.key, gpu="third"))
    assert "gpu is third, not NVIDIA GeForce RTX 4090" in str(error.value)
    assert "driver" not in str(error.value)


@pytest.mark.parametrize(
    ("built", "here", "differs"),
    [
        ({"hardware": "same_compute_capability"}, {"gpu": "x", "driver": "13.1"}, []),
        ({"hardware": "same_compute_capability"}, {"compute_capability": "8.6"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"gpu": "x", "compute_capability": "12.0"}, []),
        ({"hardware": "ampere_plus"}, {"gpu": "x", "compute_capability": "7.5"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"driver": "12.9"}, ["driver"]),
        ({"hardware": "ampere_plus"}, {"tensorrt": "10.17.0.1"}, ["tensorrt"]),
        ({"version_compatible": True}, {"tensorrt": "10.17.0.1", "driver": "13.1"}, []),
        ({"version_compatible": True}, {"tensorrt": "10.9.0.1"}, ["tensorrt"]),
        ({"version_compatible": True}, {"tensorrt": "11.4.0.106"}, ["tensorrt"]),
        ({"version_compatible": True}, {"gpu": "x"}, ["gpu"]),
        ({}, {"gpu": "x", "driver": "13.1"}, ["gpu", "driver"]),
    ],
)
def test_compatible_plans_run_where_tensorrt_says_so(built, here, differs):
    key = dataclasses.replace(KEY, **built)
    assert key.differences(dataclasses.replace(KEY, **here)) == differs


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_plan_is_not_read(bundle, damage):
    plan, data = made(bundle)
    after = add(bundle, (plan, data))
    path = bundle.path / plan.file
    path.unlink() if damage == "missing" else path.write_bytes({"truncated": data[:-1], "altered": b"A plan"}[damage])
    with pytest.raises(BundleError, match=plan.file):
        plan_bytes(after, plan)
    with pytest.raises(BundleError, match=plan.file):
        Bundle.load(bundle.path)


def test_a_plan_that_the_bundle_does_not_list_is_not_read(bundle):
    plan, data = made(bundle)
    (bundle.path / plan.file).parent.mkdir(parents=True)
    (bundle.path / plan.file).write_bytes(data)
    with pytest.raises(BundleError, match="not among its files"):
        plan_bytes(bundle, plan)
    edit(bundle, lambda manifest: manifest.update(compiled=[plan.to_json()]))
    with pytest.raises(BundleError, match="not among the bundle's files"):
        read_plans(Bundle.load(bundle.path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda plan: "text", "is str, expected an object"),
        (lambda plan: {**plan, "stage": None}, "stage is None, expected str"),
        (lambda plan: {**plan, "stage": "upscaler"}, "no stage upscaler"),
        (lambda plan: {**plan, "batch_size": 3}, "at batch size 3"),
        (lambda plan: {**plan, "batch_size": True}, "batch_size is True, expected int"),
        (lambda plan: {**plan, "key": []}, "key is list, expected an object|key is \\[\\], expected object"),
        (lambda plan: {**plan, "key": {**plan["key"], "driver": "new"}}, "driver is 'new', expected a version"),
        (lambda plan: {**plan, "key": {**plan["key"], "hardware": "any"}}, "hardware is 'any'"),
        (lambda plan: {**plan, "key": {**plan["key"], "driver": "any"}}, "driver is 'any', expected a version"),
        (lambda plan: {**plan, "key": {**plan["key"], "compute_capability": "8.6,"}}, "compute_capability is '8.6,'"),
        (
            lambda plan: {**plan, "key": {**plan["key"], "library": "other"}},
            "library is 'other', expected one of tensorrt",
        ),
        (
            lambda plan: {**plan, "median_ms": None},
            "median_ms is None, expected a number, for the plan was not compiled ahead",
        ),
        (lambda plan: {**plan, "relative_l2": "0"}, "relative_l2 is '0', expected number"),
        (
            lambda plan: {**plan, "key": {**plan["key"], "version_compatible": 1}},
            "version_compatible is 1, expected bool",
        ),
        (lambda plan: {**plan, "file": "compiled/other.plan"}, "compiled/other.plan is not among"),
    ],
)
def test_a_faulty_list_is_refused_with_its_faults(bundle, change, match):
    plan, data = made(bundle)
    add(bundle, (plan, data))
    edit(bundle, lambda manifest: manifest.update(compiled=[change(plan.to_json())]))
    with pytest.raises(BundleError, match=match):
        read_plans(Bundle.load(bundle.path))


def test_the_list_must_be_a_list(bundle):
    edit(bundle, lambda manifest: manifest.update(compiled={"a": 1}))
    with pytest.raises(BundleError, match="compiled is dict, expected a list"):
        read_plans(Bundle.load(bundle.path))


def test_the_hash_of_a_graph_covers_its_weights(bundle):
    digest = bundle.graph_sha256(bundle.graph("text_encoder", 1))
    graph, weights = "onnx/text_encoder.1.onnx", "onnx/weights.data"
    assert digest == hashlib.sha256(f"{bundle.files[graph][0]}\n{bundle.files[weights][0]}".encode()).hexdigest()
    other = dataclasses.replace(bundle, files={**bundle.files, weights: ("0" * 64, 1)})
    assert other.graph_sha256(other.graph("text_encoder", 1)) != digest
