"""What makes the next load quick: where it lies, and that nothing damaged, foreign or outdated is ever used."""

import json
import logging
import os
import resource
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from sdturbo import Pipeline, backends, cpu
from sdturbo.backends.openvino.backend import OpenVinoBackend
from sdturbo.backends.openvino.weights import keep_half_weights, round_weights
from sdturbo.bundle import Bundle
from sdturbo.cache import hashes
from sdturbo.cache.compiled import CompiledCache, cache_key
from sdturbo.cache.directory import cache_directory, private_directory
from sdturbo.cache.hashes import HashMemory
from sdturbo.files import sha256_file

BLOB = memoryview(bytes(range(256)) * 40)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed; every file counts as large, and as settled."""
    names = []

    def spy(path):
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(hashes, "sha256_file", spy)
    monkeypatch.setattr(hashes, "LARGE", 0)
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    return names


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


def test_the_variable_overrules_xdg_overrules_home(directory, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == directory
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDTURBO_CACHE_DIR", "~/mine")
    assert cache_directory() == tmp_path / "home/mine"
    monkeypatch.delenv("SDTURBO_CACHE_DIR")
    assert cache_directory() == tmp_path / "xdg" / "sdturbo"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "sdturbo"


def test_a_new_directory_is_the_users_alone(directory):
    assert private_directory("one") == directory / "one"
    assert (directory / "one").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", [".", "one"])
def test_a_directory_that_others_may_write_to_is_not_used(directory, caplog, name):
    private_directory("one")
    (directory / name).chmod(0o777)
    assert private_directory("one") is None
    assert "can be written by others" in caplog.text


def test_a_directory_that_cannot_be_made_is_not_used(directory, caplog):
    directory.write_bytes(b"")
    assert private_directory("one") is None
    assert "the cache of one is not used" in caplog.text
    assert CompiledCache(trust_unchanged=True).find("key") is None


def test_an_unchanged_file_is_hashed_once(weights, hashed):
    assert {HashMemory().sha256(weights) for _ in range(3)} == {sha256_file(weights)}
    assert hashed == ["weights"]


def test_a_small_file_is_hashed_every_time(weights, hashed, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE", 8)
    assert [HashMemory().sha256(weights) for _ in range(2)] == [sha256_file(weights)] * 2
    assert len(hashed) == 2


def test_a_file_that_was_just_written_is_not_remembered(weights, hashed, monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 3600.0)
    HashMemory().sha256(weights)
    HashMemory().sha256(weights)
    assert len(hashed) == 2


def rewrite(path):
    times = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_changed_file_is_hashed_again_though_size_and_mtime_are_the_old_ones(weights, hashed, change):
    before = HashMemory().sha256(weights)
    change(weights)
    assert HashMemory().sha256(weights) == sha256_file(weights) != before


@pytest.mark.parametrize("age", [-3600, 8 * 24 * 3600])
def test_memory_lasts_a_week(weights, hashed, directory, age):
    HashMemory().sha256(weights)
    (note,) = (directory / "hashes").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"hashed_at": time.time() - age}))
    HashMemory().sha256(weights)
    assert len(hashed) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"hashed_at": "x"}', "\ud800"])
def test_a_damaged_note_is_no_note(weights, hashed, directory, text):
    HashMemory().sha256(weights)
    (note,) = (directory / "hashes").iterdir()
    note.write_bytes(text.encode(errors="surrogatepass"))
    assert HashMemory().sha256(weights) == sha256_file(weights)
    assert len(hashed) == 2


def test_a_bundle_is_trusted_only_where_that_is_asked_for(bundle_dir, hashed):
    for _ in range(2):
        assert Bundle.load(bundle_dir, trust_unchanged=True).trust_unchanged
    assert len(hashed) == len(set(hashed)) > 3
    assert not Bundle.load(bundle_dir).trust_unchanged


def test_what_was_put_is_found_by_its_key_alone():
    cache = CompiledCache(trust_unchanged=True)
    cache.put(cache_key({"a": 1}), BLOB)
    assert bytes(cache.find(cache_key({"a": 1}))) == BLOB
    assert cache.find(cache_key({"a": 2})) is None


@pytest.mark.parametrize("trust_unchanged", [True, False])
@pytest.mark.parametrize("data", [bytes(BLOB[:-1]) + b"x", bytes(BLOB[:100]), b""])
def test_a_damaged_blob_is_deleted(directory, caplog, monkeypatch, data, trust_unchanged):
    monkeypatch.setattr(hashes, "LARGE", 0)
    cache = CompiledCache(trust_unchanged=trust_unchanged)
    cache.put("key", BLOB)
    (blob,) = (directory / "compiled").iterdir()
    blob.write_bytes(data)
    assert cache.find("key") is None
    assert "is damaged and not used" in caplog.text
    assert not blob.exists()


def test_a_disk_that_is_full_costs_the_cache_alone(directory, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        CompiledCache(trust_unchanged=True).put("key", BLOB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "is not kept for the next load" in caplog.text
    assert list((directory / "compiled").iterdir()) == []


def test_blobs_unused_for_a_month_go(directory):
    cache = CompiledCache(trust_unchanged=True)
    for key in ("old", "used", "new"):
        cache.put(key, BLOB)
    for key in ("old", "used"):
        (blob,) = (directory / "compiled").glob(f"{key}-*")
        os.utime(blob, (0, 0))
    cache.find("used")
    cache.put("another", BLOB)
    assert {path.name.partition("-")[0] for path in (directory / "compiled").glob("*.blob")} == {
        *("used", "new", "another")
    }


def test_two_processes_at_once_see_whole_blobs(directory):
    code = (
        "from sdturbo.cache.compiled import CompiledCache\n"
        "cache = CompiledCache(trust_unchanged=False)\n"
        "for i in range(100):\n"
        "    found = cache.find('key')\n"
        "    assert found is None or len(set(found[:])) == 1\n"
        "    cache.put('key', memoryview(bytes([i % 3]) * 100_000))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in started]
    assert said == ["", ""]
    assert all(one.returncode == 0 for one in started)
    assert len(list((directory / "compiled").glob("*.blob"))) == 3


@pytest.fixture
def compiled(monkeypatch):
    """Names of the graphs that OpenVINO compiled."""
    names = []
    inner = OpenVinoBackend._compile

    def spy(self, graph):
        names.append(graph.name)
        return inner(self, graph)

    monkeypatch.setattr(OpenVinoBackend, "_compile", spy)
    return names


def picture(bundle_dir, **options):
    pipe = Pipeline.load(bundle_dir, "openvino", **{"precision": "fp32", **options})
    return pipe("a red house", seed=3, output_type="np").images


def test_the_second_load_compiles_nothing_and_draws_the_same(bundle_dir, compiled):
    first = picture(bundle_dir)
    assert len(compiled) == 4
    for trust_unchanged in (True, False):
        assert np.array_equal(picture(bundle_dir, trust_unchanged=trust_unchanged), first)
    assert len(compiled) == 4


def test_other_properties_and_other_graphs_are_compiled_of_their_own(bundle_dir, make_bundle, compiled):
    picture(bundle_dir)
    picture(bundle_dir, num_threads=1)
    assert len(compiled) == 8
    picture(make_bundle((2,)))
    assert len(compiled) > 8


def test_a_blob_that_openvino_refuses_is_compiled_again(bundle_dir, compiled, directory, caplog):
    first = picture(bundle_dir)
    junk = memoryview(b"no compiled model" * 100)
    for blob in list((directory / "compiled").glob("*.blob")):
        blob.unlink()
        CompiledCache(trust_unchanged=True).put(blob.name.partition("-")[0], junk)
    assert np.array_equal(picture(bundle_dir), first)
    assert len(compiled) == 8
    assert "compiles it again" in caplog.text
    assert np.array_equal(picture(bundle_dir), first)
    assert len(compiled) == 8


def test_a_graph_that_is_not_the_bundles_is_not_kept(bundle_dir, make_bundle, directory):
    bundle, other = Bundle.load(bundle_dir), Bundle.load(make_bundle())
    backend = backends.connect(backends.BackendChoice("openvino", precision="fp32"), bundle)
    backend.session(other.graph("decoder", 1), other.stages["decoder"], 1)
    assert not list(directory.glob("compiled/*.blob"))


def test_without_a_usable_cache_all_is_compiled_and_said_once_a_load(bundle_dir, compiled, directory, caplog):
    directory.write_bytes(b"")
    caplog.set_level(logging.WARNING)
    assert np.array_equal(picture(bundle_dir), picture(bundle_dir))
    assert len(compiled) == 8
    assert caplog.text.count(f"the cache of compiled is not used: {directory}") == 2
    assert "set SDTURBO_CACHE_DIR to a directory of this user's own" in caplog.text


def test_float16_weights_stay_float16_in_what_is_kept(tmp_path):
    openvino = pytest.importorskip("openvino")
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float16)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[1,256] x) => (float[1,256] y)'
        " { w = Cast <to = 1> (half)  y = MatMul (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "half"))
    onnx.save(model, tmp_path / "g.onnx")
    core = openvino.Core()
    read = core.read_model(str(tmp_path / "g.onnx"))
    assert keep_half_weights(read) == 1
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    blob = core.compile_model(read, "CPU", properties).export_model().getvalue()
    assert weights.nbytes < len(blob) < 1.5 * weights.nbytes
    x = np.ones((1, 256), np.float32)
    (y,) = core.import_model(blob, "CPU", properties)([x]).values()
    assert np.allclose(y, x @ weights.astype(np.float32), atol=1e-4)


def test_weights_of_layers_in_bfloat16_are_kept_in_it(tmp_path):
    openvino = pytest.importorskip("openvino")
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal((2, 256, 256)).astype(np.float32)
    numbers[0, 0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, 0.0, -1e-40]  # two ties, zero, a number below the normal ones
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[1,256] x) => (float[1,256] y)'
        " { p = MatMul (x, weights)  q = MatMul (p, shared)  r = Add (q, shared_row)  y = Add (r, bias) }"
    )
    arrays = {"weights": numbers[0], "shared": numbers[1], "shared_row": numbers[1, :1], "bias": numbers[0, 1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "g.onnx")
    core = openvino.Core()
    read = core.read_model(str(tmp_path / "g.onnx"))
    assert round_weights(read) == 2
    assert round_weights(read) == 0
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    blob = core.compile_model(read, "CPU", properties).export_model().getvalue()
    assert numbers.nbytes / 2 < len(blob) < 0.75 * numbers.nbytes
    x = np.random.default_rng(1).standard_normal((1, 256)).astype(np.float32)
    rounded = torch.from_numpy(numbers).bfloat16().float().numpy()
    expected = x @ rounded[0] @ rounded[1] + arrays["shared_row"] + arrays["bias"]
    (y,) = core.import_model(blob, "CPU", properties)([x]).values()
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()


def test_machines_have_a_list_of_instruction_sets():
    assert "avx2" in cpu.cpu_flags().split() or sys.platform != "linux" or os.uname().machine != "x86_64"
