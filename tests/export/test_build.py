"""What a build leaves behind: whole bundles, reused stages, and nothing broken when it is stopped."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from sdturbo import Pipeline
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import GraphName
from sdturbo.bundle.plans import Plan, PlanKey, plan_bytes, read_plans
from sdturbo.errors import BundleError, InvalidRequest
from sdturbo_export import build as build_module
from sdturbo_export import stage_store
from sdturbo_export.build import build
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.graphs.onnx_from_torch import WeightFile
from sdturbo_export.options import BuildOptions
from sdturbo_export.proof import distance
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.lora_files import Lora

STAGES = ("text_encoder", "denoiser", "decoder", "encoder")


def built(checkpoint, out, store):
    """(bundle, names of the stages that were exported anew)."""
    lines = []
    bundle = build(checkpoint, out, store=store, say=lines.append)
    exported = [lines[i - 1].split()[1] for i, line in enumerate(lines) if line.strip().startswith("exported")]
    return bundle, exported


def test_bundle_says_what_it_is(small_bundle, small_checkpoint):
    manifest = json.loads((small_bundle.path / "bundle.json").read_text())
    assert manifest["model"]["name"] == "small"
    assert manifest["model"]["source"] == "small:0"
    assert manifest["model"]["weights"] == small_checkpoint.hashes()
    assert set(manifest["stages"]) == set(STAGES)
    assert len(manifest["schedule"]["rows"]) == 10
    assert all(0 < manifest["parity"][name]["relative_l2"] <= 1e-4 for name in STAGES)
    for name in ("LICENSE.md", "NOTICE", "tokenizer.json", "golden.png"):
        assert manifest["files"][name]["size"] == (small_bundle.path / name).stat().st_size > 0


def test_golden_picture_is_what_the_pipeline_draws(small_bundle):
    from PIL import Image

    golden = small_bundle.golden
    pipe = Pipeline.load(small_bundle.path, "onnxruntime", image_to_image=False)
    drawn = pipe(golden.prompt, seed=golden.seed, output_type="np").images[0]
    stored = np.asarray(Image.open(small_bundle.path / golden.image))
    assert np.abs(drawn.astype(int) - stored).max() <= 1


def test_unchanged_stages_are_not_exported_again(small_checkpoint, small_bundle, store, tmp_path):
    again, exported = built(small_checkpoint, tmp_path / "again", store)
    assert exported == []
    assert again.bundle_id == small_bundle.bundle_id
    assert Bundle.load(small_bundle.path).bundle_id == small_bundle.bundle_id


def test_weights_have_one_hard_link_so_that_onnx_opens_them(small_bundle, small_checkpoint, store, tmp_path):
    again, _ = built(small_checkpoint, tmp_path / "again", store)
    for bundle in (small_bundle, again):
        onnx.checker.check_model(str(bundle.graph("encoder", 1)))


def test_damaged_bundle_is_built_again(small_checkpoint, small_bundle, store, tmp_path):
    first, _ = built(small_checkpoint, tmp_path / "bundle", store)
    weights = first.path / "onnx" / "encoder.weights"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="altered"):
        Bundle.load(first.path)
    second, exported = built(small_checkpoint, first.path, store)
    assert exported == ["encoder"]
    assert second.bundle_id == small_bundle.bundle_id


def test_lora_exports_only_the_stages_it_changes(small_checkpoint, small_bundle, store, tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    factors = {
        f"{name}.lora_A.weight": torch.randn(4, 32, generator=generator),
        f"{name}.lora_B.weight": torch.randn(32, 4, generator=generator),
    }
    save_file(factors, tmp_path / "style.safetensors")
    loras = (Lora(tmp_path / "style.safetensors", 0.5),)
    bundle, exported = built(dataclasses.replace(small_checkpoint, loras=loras), tmp_path / "styled", store)
    assert set(exported) <= {"text_encoder", "denoiser"}
    assert "denoiser" in exported
    assert bundle.bundle_id != small_bundle.bundle_id
    assert [(lora["file"], lora["scale"]) for lora in bundle.model["loras"]] == [("style.safetensors", 0.5)]
    pictures = [
        Pipeline.load(one.path, "onnxruntime", image_to_image=False)("x", output_type="np").images[0]
        for one in (small_bundle, bundle)
    ]
    assert not np.array_equal(*pictures)


def test_parity_failure_publishes_nothing(small_checkpoint, store, tmp_path, monkeypatch):
    monkeypatch.setitem(distance.BOUNDS, "fp32", 0.0)
    with pytest.raises(ParityError, match="text_encoder"):
        build(small_checkpoint, tmp_path / "out", store=tmp_path / "store")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_full_disk_is_said_and_older_bundle_survives(small_checkpoint, store, tmp_path, monkeypatch):
    old, _ = built(small_checkpoint, tmp_path / "out", store)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WeightFile, "put", full)
    with pytest.raises(BuildError, match=r"disk is full.*Free some space"):
        build(small_checkpoint, tmp_path / "out", store=tmp_path / "other")
    assert Bundle.load(tmp_path / "out").bundle_id == old.bundle_id


def test_too_little_space_is_refused_before_work_begins(small_checkpoint, tmp_path, monkeypatch):
    usage = build_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BuildError, match="GB are free"):
        build(small_checkpoint, tmp_path / "out")


def test_unwritable_place_is_said(small_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="--out"):
        build(small_checkpoint, tmp_path / "file" / "out")


def test_read_only_directory_is_said(small_checkpoint, store, tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(build_module, "write_bundle", read_only)
    with pytest.raises(BuildError, match="Read-only"):
        build(small_checkpoint, tmp_path / "out", store=store)


def test_directory_that_is_no_bundle_is_left_alone(small_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidRequest, match="left alone"):
        build(small_checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_bundle_with_other_files_in_it_is_left_alone(small_checkpoint, small_bundle, store, tmp_path):
    out = shutil.copytree(small_bundle.path, tmp_path / "out")
    (out / "notes").mkdir()
    (out / "notes" / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidRequest, match=r"notes/thesis\.txt"):
        build(small_checkpoint, out, store=store)
    assert (out / "notes" / "thesis.txt").read_text() == "precious"
    project = tmp_path / "project"
    project.mkdir()
    (project / "bundle.json").write_text('{"scripts": 1}')
    with pytest.raises(InvalidRequest, match="is no bundle"):
        build(small_checkpoint, project, store=store)


def test_link_to_a_bundle_stays_a_link(small_checkpoint, store, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        build(small_checkpoint, tmp_path / "link", store=store)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.load(tmp_path / "real").model["name"] == "small"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_an_unfinished_bundle_is_cleared_when_the_disk_is_full(small_checkpoint, store, tmp_path, monkeypatch):
    def full(partial, *_, **__):
        partial.mkdir()
        (partial / "large").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build_module, "write_bundle", full)
    with pytest.raises(BuildError, match="disk is full"):
        build(small_checkpoint, tmp_path / "out", store=store)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [(), (0,), (1, -2)])
def test_impossible_batch_sizes_are_refused(small_checkpoint, tmp_path, sizes):
    with pytest.raises(InvalidRequest, match="batch sizes"):
        build(small_checkpoint, tmp_path / "out", BuildOptions(batch_sizes=sizes))


def test_two_builds_do_not_share_a_store(small_checkpoint, tmp_path):
    with build_module._lock(tmp_path / "store"), pytest.raises(BuildError, match="Another build"):
        build(small_checkpoint, tmp_path / "out", store=tmp_path / "store")


@pytest.mark.parametrize("moment", ["text_encoder", "denoiser"])
def test_killed_build_leaves_no_bundle_and_the_next_one_goes_on(small_path, small_bundle, store, tmp_path, moment):
    out, workspace = tmp_path / "out", tmp_path / "work"
    others = shutil.ignore_patterns(".lock", f"{moment}-*", *(["text_encoder-*"] if moment == "denoiser" else []))
    shutil.copytree(store, workspace / "stages", ignore=others)  # finished by an earlier build
    command = [sys.executable, "-m", "sdturbo_export", "build", "--model", str(small_path), "--out", str(out)]
    command += ["--workspace", str(workspace)]
    (workspace / "stages" / ".older.partial").mkdir()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if moment in line:
            break
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not out.exists()
    bundle, exported = built(open_checkpoint(small_path, name="small", source="small:0"), out, workspace / "stages")
    assert "text_encoder" not in exported or moment == "text_encoder"
    assert bundle.bundle_id == small_bundle.bundle_id
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "work"]
    assert [path.name for path in (workspace / "stages").iterdir() if path.name.startswith(".")] == [".lock"]


def test_bundle_that_was_on_its_way_out_comes_back(small_checkpoint, store, tmp_path, monkeypatch):
    out = tmp_path / "out"
    old, _ = built(small_checkpoint, out, store)
    out.rename(tmp_path / ".out.old")  # killed between two renames

    def broken(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(build_module, "write_bundle", broken)
    with pytest.raises(BuildError):
        build(small_checkpoint, out, store=store)
    assert Bundle.load(out).bundle_id == old.bundle_id


def test_store_forgets_a_stage_whose_bundle_was_deleted(small_checkpoint, tmp_path):
    key = "text_encoder-0123"
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "text_encoder.onnx").write_bytes(b"graph")
    stored = stage_store.publish(
        tmp_path,
        key,
        partial,
        graphs={GraphName(1): "text_encoder.onnx"},
        parity=1e-6,
        inputs={"input_ids": np.zeros(1, np.int64)},
        output=np.zeros(3, np.float32),
    )
    assert stage_store.find(tmp_path, key) == dataclasses.replace(stored, path=(tmp_path / key).resolve())
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "text_encoder.onnx").write_bytes(b"graph")
    stage_store.hand_over(stored, bundle)
    assert stage_store.find(tmp_path, key).path == bundle.resolve()
    (bundle / "text_encoder.onnx").unlink()
    assert stage_store.find(tmp_path, key) is None
    assert not (tmp_path / key).exists()


@pytest.mark.parametrize(
    ("licence", "is_stability"),
    [("Licensed under the Stability AI Community License", True), ("MIT", False), (None, True)],
)
def test_notice_follows_the_licence_of_the_weights(copied, store, tmp_path, licence, is_stability):
    (copied / "LICENSE.md").unlink()
    if licence:
        (copied / "LICENSE.md").write_text(licence)
    out = build(open_checkpoint(copied), tmp_path / "out", store=store).path
    assert ("This Stability AI Model is licensed under" in (out / "NOTICE").read_text()) == is_stability
    assert (licence or "https://stability.ai/license") in (out / "LICENSE.md").read_text()


def test_a_rebuilt_bundle_keeps_plans_of_graphs_that_did_not_change(small_checkpoint, store, tmp_path):
    first, _ = built(small_checkpoint, tmp_path / "bundle", store)
    key = PlanKey(
        "10.16.1.11", "8.9", "Some GPU", "13.0", first.graph_sha256(first.graph("decoder", 1)), first.precision
    )
    plan = Plan(plan_name(key, "decoder", 1, b"code"), "decoder", 1, key, 1e-4, 2.0)
    old = dataclasses.replace(key, onnx_sha256="0" * 64)
    gone = Plan(plan_name(old, "denoiser", 1, b"old"), "denoiser", 1, old, 1e-4, 2.0)
    add_plans(first, {plan: b"code", gone: b"old"}, {plan.file.replace(".plan", ".layers.json"): b"{}"})
    lines = []
    second = build(small_checkpoint, first.path, store=store, say=lines.append)
    assert read_plans(second) == [plan]
    assert plan_bytes(second, plan) == b"code"
    assert sum(name.startswith("compiled/") for name in second.files) == 2
    assert second.bundle_id == first.bundle_id
    assert "      1 of 2 TensorRT plans are of these graphs and stay" in lines
