"""Plans of TensorRT for RTX on an imitation: they run, their kernels are compiled once, and what does not fit is refused."""

import logging
import shutil
import sys

import imitation
import numpy as np
import pytest
from imitation.cuda import Properties
from imitation.plans import with_plans, with_plans_ahead

from sdturbo import BackendUnavailable, Bundle, Pipeline, backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia.library import RTX, TENSORRT, installed_library
from sdturbo.errors import InvalidRequest, PlanMismatch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the kernels that are kept."""
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/compiled"


@pytest.fixture
def nvidia(monkeypatch):
    """(cuda, tensorrt_rtx), without TensorRT."""
    return imitation.install(monkeypatch, rtx=True)


@pytest.fixture
def plain(make_bundle, tmp_path):
    """A bundle without plans."""
    return Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle"))


@pytest.fixture
def bundle(plain, nvidia):
    return with_plans_ahead(plain)


def drawn(bundle, backend="tensorrt"):
    return Pipeline.load(bundle.path, backend)("a cat", output_type="np")


def test_plans_made_ahead_draw_the_graphs_pictures_and_the_library_is_named(bundle, nvidia):
    result = drawn(bundle)
    assert np.array_equal(result.images, drawn(bundle, "onnxruntime").images)
    assert list(result.lost_recordings) == []
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    assert backend.version == "1.7.1.116 (TensorRT for RTX)"
    assert backend.library is RTX


def test_the_second_load_finds_the_kernels_that_the_first_compiled(bundle, nvidia, cache):
    _, rtx = nvidia
    first = drawn(bundle)
    assert len(rtx.compiled) == 8  # four stages, two batch sizes
    assert len(list(cache.glob("*.blob"))) == 8
    again = drawn(bundle)
    assert len(rtx.compiled) == 8
    assert np.array_equal(again.images, first.images)


def decoder(bundle):
    """A session's kernels."""
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    return backend.session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1).engine.kernels


def test_a_session_says_whether_its_kernels_are_those_of_an_earlier_load(bundle):
    assert [decoder(bundle).used for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("damage", ["altered", "truncated"])
def test_damaged_kernels_are_never_shown_to_the_library(bundle, nvidia, cache, caplog, damage):
    decoder(bundle)
    (blob,) = cache.glob("*.blob")
    blob.write_bytes(b"x" * blob.stat().st_size if damage == "altered" else b"[")
    assert not decoder(bundle).used
    assert "is damaged and not used" in caplog.text
    assert decoder(bundle).used


def test_kernels_that_the_library_refuses_are_compiled_anew_and_replaced(bundle, nvidia, cache, caplog):
    _, rtx = nvidia
    decoder(bundle)
    before = next(cache.glob("*.blob")).stat().st_mtime_ns
    rtx.refuses = "kernels"  # as those of another version, GPU or driver
    with caplog.at_level(logging.INFO, "sdturbo"):
        assert not decoder(bundle).used
    assert "kernels of an earlier load are not used: tensorrt_rtx refuses them" in caplog.text
    rtx.refuses = None
    assert next(cache.glob("*.blob")).stat().st_mtime_ns > before
    assert decoder(bundle).used


def test_a_library_that_takes_no_cache_compiles_at_every_load(bundle, nvidia, cache):
    nvidia[1].refuses = "set"
    assert [decoder(bundle).used for _ in range(2)] == [False, False]
    assert len(nvidia[1].compiled) == 2
    assert list(cache.glob("*.blob")) == []


def test_kernels_belong_to_a_plan_a_gpu_a_driver_and_a_version(bundle, nvidia, monkeypatch):
    cuda, rtx = nvidia
    decoder(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(Properties, "name", b"Other GPU")
        assert not decoder(bundle).used
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "driver", 13010)
        assert not decoder(bundle).used
    rtx.__version__ = "1.8.0.1"
    other = with_plans_ahead(bundle)
    assert not decoder(other).used


def test_without_a_usable_cache_plans_run(bundle, nvidia, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDTURBO_CACHE_DIR", str(tmp_path / "file"))
    assert drawn(bundle).images.shape == (1, 64, 64, 3)


def refusal(bundle):
    with pytest.raises(BackendUnavailable) as error:
        Pipeline.load(bundle.path, "tensorrt")
    return error.value


def test_a_plan_for_rtx_is_refused_by_tensorrt(bundle, monkeypatch):
    _, trt = imitation.install(monkeypatch)
    error = refusal(bundle)
    assert isinstance(error, PlanMismatch)
    assert "was compiled for something else: library is tensorrt, not tensorrt-rtx." in str(error)
    assert f"`sdturbo-export trt {bundle.path} --library tensorrt` compiles plans" in str(error)
    assert "Or `pip install '.[tensorrt-rtx]'`" in str(error)
    assert not hasattr(trt, "deserialised")


def test_a_plan_of_tensorrt_is_refused_by_tensorrt_for_rtx(plain, monkeypatch):
    imitation.install(monkeypatch)
    bundle = with_plans(plain)
    _, rtx = imitation.install(monkeypatch, rtx=True)
    error = refusal(bundle)
    assert isinstance(error, PlanMismatch)
    assert "library is tensorrt-rtx, not tensorrt." in str(error)
    assert "Or `pip install '.[tensorrt]'`" in str(error)
    assert not hasattr(rtx, "deserialised")


def test_a_card_that_the_library_does_not_list_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(Properties, "major", 9)
    monkeypatch.setattr(Properties, "minor", 0)
    words = str(refusal(bundle))
    assert "TensorRT for RTX 1.7.1.116 does not support the Imitated GPU: its compute capability is 9.0" in words
    assert "expected one of 7.5, 8.6, 8.9, 12.0. In a clone of sdturbo, `pip install '.[tensorrt]'`" in words


def test_a_plan_for_other_compute_capabilities_is_refused(plain, nvidia):
    bundle = with_plans_ahead(plain, "7.5,12.0")
    error = refusal(bundle)
    assert isinstance(error, PlanMismatch)
    assert "compute_capability is 8.9, not 7.5,12.0." in str(error)
    assert f"`sdturbo-export trt {bundle.path} --library tensorrt-rtx`" in str(error)
    assert not hasattr(nvidia[1], "deserialised")


def test_versions_that_do_not_fit_are_refused(bundle, nvidia):
    nvidia[1].__version__ = "1.8.0.1"
    assert "tensorrt is 1.8.0.1, not 1.7.1.116." in str(refusal(bundle))
    nvidia[1].__version__ = "2.0.0.1"
    words = str(refusal(bundle))
    assert "TensorRT for RTX 2.0.0.1 is installed, expected 1." in words
    assert "`pip install '.[tensorrt-rtx]'`" in words


def test_where_both_are_installed_the_one_that_made_the_plans_runs_them(plain, monkeypatch):
    _, rtx = imitation.install(monkeypatch, rtx=True)
    imitation.install(monkeypatch)
    rtx.cuda = sys.modules["cuda.bindings"].runtime
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert installed_library() is TENSORRT
    assert installed_library({"tensorrt-rtx"}) is RTX
    assert installed_library({"tensorrt-rtx", "tensorrt"}) is TENSORRT
    ahead = with_plans_ahead(plain, tensorrt=rtx.__version__, library="tensorrt-rtx")
    assert backends.connect(BackendChoice("tensorrt"), ahead).version == "1.7.1.116 (TensorRT for RTX)"
    assert drawn(ahead).images.shape == (1, 64, 64, 3)
    both = with_plans(ahead)
    assert backends.connect(BackendChoice("tensorrt"), both).version == "10.16.1.11"


def test_one_plan_is_for_all_cards_but_turing_which_has_no_products_in_fp32(nvidia):
    assert RTX.targets((), "fp16") == [("7.5",), ("8.6", "8.9", "12.0")]
    assert RTX.targets(("12.0", "8.9", "12.0"), "fp16") == [("8.9", "12.0")]
    assert RTX.targets((), "fp32") == [("8.6", "8.9", "12.0")]
    for asked, precision in (("9.0", "fp16"), ("7.5", "fp32")):
        with pytest.raises(InvalidRequest, match=rf"compute capability {asked}\. .* graphs in {precision} for .*12\.0"):
            RTX.targets(("8.9", asked), precision)


def test_a_library_that_cannot_be_imported_is_refused_with_its_extra(monkeypatch):
    imitation.absent(monkeypatch, "tensorrt_rtx")
    with pytest.raises(
        BackendUnavailable, match=r"TensorRT for RTX does not load here .*pip install '\.\[tensorrt-rtx\]'"
    ):
        RTX.require()
