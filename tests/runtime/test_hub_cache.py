"""Bundles in the cache of huggingface_hub, where every file is a link to a blob."""

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from imitation.hub_cache import COMMIT, cached, share

from sdturbo import BackendUnavailable, Bundle, BundleError, Pipeline
from sdturbo.backends.ort import readable
from sdturbo.backends.plain_files import plain_files
from sdturbo.bundle import EMBEDDED
from sdturbo.golden import golden_distance

OTHER = "f" * 40
CPU_BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def snapshot(bundle_dir, cache):
    return cached(bundle_dir, cache)


def faults_of(path):
    with pytest.raises(BundleError) as caught:
        Bundle.load(path)
    return caught.value.faults


def relinked(snapshot: Path, target) -> Path:
    """The snapshot with its tokenizer as a link to `target`."""
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(target)
    return snapshot


def blob_of(snapshot):
    return (snapshot / "tokenizer.json").resolve()


def test_a_snapshot_is_read_wherever_its_path_comes_from(bundle_dir, snapshot, tmp_path, monkeypatch):
    expected, repository = Bundle.load(bundle_dir).bundle_id, snapshot.parents[1]
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "another disk").mkdir()
    repository.symlink_to(repository.rename(tmp_path / "another disk" / repository.name))
    monkeypatch.chdir(snapshot / "onnx")
    for path in (snapshot, tmp_path / "link", snapshot / "onnx" / "..", Path(".."), repository, str(repository)):
        assert Bundle.load(path).bundle_id == expected
    assert Bundle.load(repository).path == snapshot


def test_a_bundle_in_a_folder_of_a_repository_is_read(bundle_dir, cache):
    assert Bundle.load(cached(bundle_dir, cache, folder="int8/512")).bundle_id == Bundle.load(bundle_dir).bundle_id


def test_a_snapshot_that_was_fetched_by_its_commit_has_no_refs(bundle_dir, cache):
    assert Bundle.load(cached(bundle_dir, cache, branch=None)).path.name == COMMIT


def test_links_inside_the_repository_are_taken(snapshot):
    """Whether absolute, through another snapshot, or in a chain."""
    blob = blob_of(snapshot)
    other = snapshot.parent / OTHER
    other.mkdir()
    (other / "tokenizer.json").symlink_to(blob)
    for target in (blob, Path("..", OTHER, "tokenizer.json")):
        assert Bundle.load(relinked(snapshot, target)).path == snapshot


@pytest.mark.parametrize("way", ["elsewhere", "sibling", "relative", "chain", "passwd"])
def test_a_link_that_leads_out_of_the_repository_is_refused(bundle_dir, snapshot, cache, tmp_path, way):
    """Even to the right bytes."""
    outside = tmp_path / "tokenizer.json"
    shutil.copy(blob_of(snapshot), outside)
    sibling = cached(bundle_dir, cache, repo_id="someone/other")
    chain = snapshot.parents[1] / "blobs" / "chain"
    chain.symlink_to(outside)
    target = {
        "elsewhere": outside,
        "sibling": blob_of(sibling),
        "relative": os.path.relpath(outside, snapshot),
        "chain": chain,
        "passwd": "/etc/passwd",
    }[way]
    fault, remedy = faults_of(relinked(snapshot, target))
    assert fault.startswith("tokenizer.json leads out of the bundle, to ")
    assert "someone/model" in remedy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("models--someone--model", "someone--model"),
        (f"snapshots/{COMMIT}", "snapshots/main"),
        (f"snapshots/{COMMIT}", f"versions/{COMMIT}"),
    ],
)
def test_links_out_of_a_directory_that_is_no_snapshot_are_refused(snapshot, cache, before, after):
    path = Path(str(snapshot).replace(before, after))
    for old, new in zip(reversed(snapshot.parents), reversed(path.parents), strict=True):
        if old.name != new.name:
            old.rename(new)
    if path.parent.is_dir() and not path.exists():
        (path.parent / COMMIT).rename(path)
    *faults, _ = faults_of(path)
    assert len(faults) > 3
    assert all("leads out of the bundle" in fault for fault in faults)


def test_a_directory_without_blobs_is_no_cache(snapshot):
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(blobs.with_name("files"))
    for link in [path for path in snapshot.rglob("*") if path.is_symlink()]:
        target = str(link.readlink()).replace("blobs", "files")
        link.unlink()
        link.symlink_to(target)
    assert all("leads out of the bundle" in fault for fault in faults_of(snapshot)[:-1])


def test_an_altered_blob_is_refused(snapshot):
    blob = blob_of(snapshot)
    blob.write_bytes(blob.read_bytes().replace(b"vocab", b"VOCAB", 1))
    fault, remedy = faults_of(snapshot)
    assert fault.startswith("tokenizer.json was altered: sha256 ")
    assert f"delete {snapshot.parents[1]}" in remedy


def test_a_cache_without_links_is_read(bundle_dir, cache):
    """As on a file system, or a Windows account, that has none."""
    snapshot = cache / "models--someone--model" / "snapshots" / COMMIT
    shutil.copytree(bundle_dir, snapshot)
    assert Bundle.load(snapshot).path == snapshot
    assert Bundle.load(snapshot.parents[1]).path == snapshot


def test_files_beside_a_bundle_are_not_looked_at(bundle_dir, tmp_path):
    """`hf download --local-dir` leaves notes, and a repository has a card."""
    path = shutil.copytree(bundle_dir, tmp_path / "bundle")
    notes = path / ".cache" / "huggingface" / "download" / "onnx"
    notes.mkdir(parents=True)
    (notes / "decoder.1.onnx.metadata").write_text("note")
    (path / ".gitattributes").symlink_to("/etc/passwd")
    (path / "README.md").write_text("# card")
    assert Bundle.load(path).bundle_id == Bundle.load(bundle_dir).bundle_id


def test_a_repository_stands_for_its_main_branch_or_its_only_snapshot(bundle_dir, snapshot, cache):
    other, repository = cached(bundle_dir, cache, commit=OTHER, branch="v2"), snapshot.parents[1]
    assert Bundle.load(repository).path == snapshot
    for name in (b"\xff\xfe", b"e" * 40, b""):
        (repository / "refs" / "main").write_bytes(name)
        (fault,) = faults_of(repository)
        assert "of which no snapshot is here: name the one you mean" in fault
        assert str(snapshot) in fault
    (repository / "refs" / "main").unlink()
    (fault,) = faults_of(repository)
    assert "2 snapshots: name the one you mean" in fault
    assert str(snapshot) in fault
    assert str(other) in fault
    shutil.rmtree(snapshot)
    assert Bundle.load(repository).path == other


def test_blobs_in_the_store_of_the_cache_are_taken(bundle_dir, snapshot, tmp_path):
    store = share(snapshot)
    for path in (snapshot, snapshot.parents[1]):
        assert Bundle.load(path).bundle_id == Bundle.load(bundle_dir).bundle_id
    mark = store / ".huggingface-shared-blobs"
    mark.rename(tmp_path / "mark")  # any directory may be called blobs
    assert all("leads out of the bundle" in fault for fault in faults_of(snapshot)[:-1])
    for forge in (lambda: mark.symlink_to(tmp_path / "mark"), lambda: mark.write_text("2\n"), mark.mkdir):
        forge()
        assert all("leads out of the bundle" in fault for fault in faults_of(snapshot)[:-1])
        mark.rmdir() if mark.is_dir() else mark.unlink()
    (tmp_path / "mark").rename(mark)
    (tmp_path / "store").symlink_to(store.rename(tmp_path / "elsewhere"))
    (tmp_path / "store").rename(store)
    assert all("leads out of the bundle" in fault for fault in faults_of(snapshot)[:-1])
    store.unlink()
    (tmp_path / "elsewhere").rename(store)
    stored = store / "tokenizer.json"
    blob_of(snapshot).rename(stored)
    fault, _ = faults_of(relinked(snapshot, stored))  # not named after its hash
    assert "leads out of the bundle" in fault


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_both_cpu_backends_draw_the_same_from_links(bundle_dir, snapshot, backend, shared, tmp_path, monkeypatch):
    if shared:
        share(snapshot)
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "own cache"))
    linked = Pipeline.load(snapshot, backend=backend)("a cat", output_type="np").images
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "other cache"))
    assert np.array_equal(linked, Pipeline.load(bundle_dir, backend=backend)("a cat", output_type="np").images)
    assert list(tmp_path.glob("own cache/graphs/*")) == []


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_tiny_draws_its_golden_picture_from_links(cache, backend):
    pipe = Pipeline.load(cached(EMBEDDED, cache).parents[1], backend=backend)
    assert golden_distance(pipe) > pipe.bundle.golden.min_psnr


@pytest.mark.parametrize(
    ("version", "plain"), [("1.23.2", False), ("1.24.4", True), ("1.31.0", True), ("1.32.0", False)]
)
def test_versions_of_onnxruntime_that_follow_no_links_get_plain_files(snapshot, version, plain):
    with readable(snapshot / "onnx" / "text_encoder.1.onnx", version) as graph:
        assert graph.is_symlink() != plain


def no_links(*_args, **_options):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_weights_on_another_disk_are_copied(snapshot, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    with plain_files(snapshot / "onnx" / "text_encoder.1.onnx", "a library") as graph:
        assert [path.is_symlink() for path in (graph, graph.parent / "weights.data")] == [False, False]
        assert (graph.parent / "weights.data").read_bytes() == (snapshot / "onnx" / "weights.data").read_bytes()
    assert not graph.parent.exists()


def test_what_a_killed_load_left_is_removed_and_what_is_in_use_stays(snapshot, monkeypatch, tmp_path):
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "own cache"))
    graph = snapshot / "onnx" / "text_encoder.1.onnx"
    with plain_files(graph, "a library") as used:
        abandoned, fresh = used.parent.with_name("tmpold"), used.parent.with_name("tmpnew")
        for directory in (abandoned, fresh):
            directory.mkdir()
            (directory / "weights.data").write_bytes(b"weights")
        for directory in (abandoned, used.parent):
            os.utime(directory, (0, time.time() - 120))
        with plain_files(graph, "a library"):
            assert [path.exists() for path in (abandoned, fresh, used)] == [False, True, True]


def test_without_room_for_a_copy_the_refusal_says_what_to_do(snapshot, monkeypatch, tmp_path):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "empty"))  # nothing is compiled yet
    with pytest.raises(BackendUnavailable, match=r"No space left.*No space left.*SDTURBO_CACHE_DIR.*cp -rL"):
        Pipeline.load(snapshot, backend="openvino")


def test_a_graph_without_links_is_read_where_it_is(bundle_dir):
    graph = bundle_dir / "onnx" / "text_encoder.1.onnx"
    with plain_files(graph, "a library") as path:
        assert path == graph
