"""Plans compiled ahead, on an imitation of TensorRT for RTX: without CUDA, in few plans, without invented figures."""

import json
import shutil
import sys

import imitation
import pytest

from sdturbo import Bundle
from sdturbo.bundle.description import identity
from sdturbo.bundle.plans import plan_bytes, read_plans
from sdturbo.commands.console import run
from sdturbo.errors import BackendUnavailable
from sdturbo_export.cli import cli
from sdturbo_export.errors import BuildError
from sdturbo_export.tensorrt import plan_writer, trt_from_onnx


@pytest.fixture
def rtx(monkeypatch):
    """TensorRT for RTX on a machine without CUDA's bindings."""
    _, library = imitation.install(monkeypatch, rtx=True)
    imitation.absent(monkeypatch, "cuda", "cuda.bindings")
    return library


@pytest.fixture
def bundle(make_bundle, tmp_path):
    return Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle"))


@pytest.fixture
def half(bundle):
    """The bundle under the name of fp16. An imitation does not look into the graphs."""
    path = bundle.path / "bundle.json"
    manifest = json.loads(path.read_text()) | {"precision": "fp16"}
    path.write_text(json.dumps(manifest | {"bundle_id": identity(manifest)}))
    return Bundle.load(bundle.path)


def trt(bundle, *arguments):
    return run(cli, "sdturbo-export", ["trt", str(bundle.path), *arguments])


def test_plans_for_all_listed_cards_are_compiled_without_cuda(bundle, rtx, capsys):
    assert trt(bundle) == 0
    plans = read_plans(Bundle.load(bundle.path))
    assert [(plan.stage, plan.batch_size) for plan in plans] == [
        (name, size) for size in (1, 2) for name in bundle.stages
    ]
    for plan in plans:
        assert (plan.key.gpu, plan.key.driver, plan.key.library) == ("any", "any", "tensorrt-rtx")
        assert (plan.relative_l2, plan.median_ms) == (None, None)
        assert plan.key.compute_capability == "8.6,8.9,12.0"
        assert json.loads(plan_bytes(Bundle.load(bundle.path), plan))["capabilities"] == ["SM86", "SM89", "SM120"]
    told = capsys.readouterr()
    assert "TensorRT for RTX has no matrix products in fp32 for 7.5, which is left out" in told.err
    assert "8 plans. Those for RTX cards were not run, compared or timed: they run on such a card alone." in told.out
    assert "relative L2" not in told.err


def test_turing_has_a_plan_of_its_own_in_fp16(half, rtx):
    assert trt(half) == 0
    assert {plan.key.compute_capability for plan in read_plans(Bundle.load(half.path))} == {"7.5", "8.6,8.9,12.0"}


def test_the_compute_capabilities_that_are_named_are_compiled_for_and_what_is_there_is_kept(bundle, rtx, capsys):
    named = ("--capability", "12.0", "--capability", "8.9")
    assert trt(bundle, *named, "--optimization-level", "2", "--workspace-gb", "0.5") == 0
    assert {plan.key.compute_capability for plan in read_plans(Bundle.load(bundle.path))} == {"8.9,12.0"}
    config = rtx.configs[-1]
    assert config.builder_optimization_level == 2
    assert set(config.limits.values()) == {1 << 29}
    builds = len(rtx.configs)
    capsys.readouterr()
    assert trt(bundle, *named) == 0
    assert capsys.readouterr().err.count("there already") == 8
    assert len(rtx.configs) == builds
    assert trt(bundle) == 0
    assert len(read_plans(Bundle.load(bundle.path))) == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--capability", "9.0"),
            "Got the compute capability 9.0. TensorRT for RTX 1.7.1.116 compiles graphs in fp32 for",
        ),
        (
            ("--capability", "7.5"),
            "for 8.6, 8.9, 12.0. Plans for other cards are compiled on them (--library tensorrt)",
        ),
        (("--capability", "new"), "Got the compute capability new"),
        (("--device", "cuda:1", "--tries", "2"), "Got --device, --tries with TensorRT for RTX"),
        (("--hardware", "ampere_plus"), "Got --hardware with TensorRT for RTX"),
        (("--version-compatible",), "Got --version-compatible with TensorRT for RTX"),
        (
            ("--library", "tensorrt", "--capability", "8.9"),
            "Got --capability 8.9 with TensorRT, which compiles for the GPU",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_build(bundle, rtx, capsys, arguments, words):
    assert trt(bundle, *arguments) == 2
    assert words in capsys.readouterr().err
    assert rtx.configs == []


def test_another_library_than_the_one_that_was_named_is_never_used(bundle, rtx, capsys, monkeypatch):
    assert trt(bundle, "--library", "tensorrt") == BackendUnavailable.exit_code
    assert "the package tensorrt is not installed" in capsys.readouterr().err
    assert rtx.configs == []
    imitation.absent(monkeypatch, "tensorrt_rtx")
    assert trt(bundle, "--library", "tensorrt-rtx") == BackendUnavailable.exit_code
    assert "pip install '.[tensorrt-rtx]'" in capsys.readouterr().err


def test_a_library_of_another_version_is_refused(bundle, rtx, capsys):
    rtx.__version__ = "2.0.0.1"
    assert trt(bundle) == BackendUnavailable.exit_code
    assert "TensorRT for RTX 2.0.0.1 is installed, expected 1." in capsys.readouterr().err


def test_where_both_are_installed_tensorrt_compiles_unless_capabilities_are_named(bundle, monkeypatch):
    _, rtx = imitation.install(monkeypatch, rtx=True)
    _, tensorrt = imitation.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert trt(bundle, "--capability", "8.9") == 0
    assert (len(rtx.configs), len(tensorrt.configs)) == (8, 0)
    assert trt(bundle, "--tries", "1") == 0
    assert (len(rtx.configs), len(tensorrt.configs)) == (8, 8)
    assert {plan.key.library for plan in read_plans(Bundle.load(bundle.path))} == {"tensorrt", "tensorrt-rtx"}


def test_room_on_the_disk_is_looked_at_first(bundle, rtx, monkeypatch, capsys):
    monkeypatch.setattr(plan_writer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert trt(bundle) == BuildError.exit_code
    assert "The plan of the text_encoder needs" in capsys.readouterr().err
    assert rtx.configs == []


def test_an_interrupt_ends_the_build_and_finished_plans_stay(bundle, rtx, monkeypatch):
    share = trt_from_onnx.Phases.step

    def interrupt(self, name, step):
        if len(rtx.configs) == 3:
            raise KeyboardInterrupt
        share(self, name, step)

    monkeypatch.setattr(trt_from_onnx.Phases, "step", interrupt)
    assert trt(bundle) == 130
    assert [plan.stage for plan in read_plans(Bundle.load(bundle.path))] == ["text_encoder", "denoiser"]


def test_a_capability_that_the_builder_refuses_is_an_error(bundle, rtx, capsys, monkeypatch):
    monkeypatch.setattr(imitation.tensorrt_rtx.Config, "set_compute_capability", lambda *_: False)
    assert trt(bundle) == BuildError.exit_code
    assert "TensorRT for RTX refuses to compile for compute capability 8.6" in capsys.readouterr().err
