"""Compiling plans, on imitations of CUDA and TensorRT: what is asked of the builder, which try is kept, what is refused."""

import json
import shutil
from pathlib import Path

import imitation
import numpy as np
import onnx
import pytest

from sdturbo import Bundle, Pipeline
from sdturbo.backends.nvidia.gpus import Gpu
from sdturbo.bundle.description import identity
from sdturbo.bundle.plans import plan_bytes, read_plans
from sdturbo.commands.console import run
from sdturbo.files import sha256_file
from sdturbo_export.cli import cli
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.progress import Progress
from sdturbo_export.tensorrt import plan_writer, trt_plans
from sdturbo_export.tensorrt.plan_writer import keep_plans
from sdturbo_export.tensorrt.trt_from_onnx import Phases, PlanOptions, trt_from_onnx
from sdturbo_export.tensorrt.trt_plans import compile_plans, require_room

GB = 1 << 30


@pytest.fixture
def bundle(make_bundle, tmp_path, nvidia):
    return Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle"))


@pytest.fixture
def timing_caches(tmp_path):
    return tmp_path / "timings"


def test_compiled_plans_draw_the_graphs_pictures(bundle, timing_caches):
    lines = []
    compiled = compile_plans(bundle, timing_caches=timing_caches, say=lines.append)
    plans = read_plans(compiled)
    assert {(plan.stage, plan.batch_size) for plan in plans} == {
        (name, size) for name in bundle.stages for size in (1, 2)
    }
    assert all(plan.relative_l2 < 1e-6 and plan.median_ms > 0 for plan in plans)
    assert compiled.bundle_id == bundle.bundle_id
    found, expected = (
        Pipeline.load(bundle.path, name)("a cat", num_images_per_prompt=3, output_type="np").images
        for name in ("tensorrt", "onnxruntime")
    )
    assert np.array_equal(found, expected)
    percents = [line.partition(",")[0] for line in lines if "%" in line]
    assert percents[:3] == ["      10 %", "      20 %", "      30 %"]
    assert sum("relative L2 distance to the CPU" in line for line in lines) == 8


def test_an_encoder_with_one_noise_is_compiled_and_compared_too(make_bundle, tmp_path, nvidia, timing_caches):
    bundle = Bundle.load(shutil.copytree(make_bundle(posterior=False), tmp_path / "one-noise"))
    assert [spec.name for spec in bundle.stages["encoder"].inputs] == ["image", "noise", "step"]
    plans = read_plans(compile_plans(bundle, timing_caches=timing_caches, tries=1))
    assert [plan.stage for plan in plans] == list(bundle.stages)
    assert all(plan.relative_l2 < 1e-6 for plan in plans)


@pytest.mark.parametrize("index", [0, 1])
def test_plans_are_compiled_and_loaded_on_the_gpu_that_was_named(make_bundle, tmp_path, timing_caches, nvidia, index):
    root = shutil.copytree(make_bundle(), tmp_path / "bundle")
    compile_plans(Bundle.load(root), device=f"cuda:{index}", timing_caches=timing_caches)
    Pipeline.load(root, "tensorrt", device=f"cuda:{index}")("a cat")
    assert nvidia[1].used_gpus == {index}


def test_layers_are_reported_beside_each_plan(bundle, timing_caches):
    compiled = compile_plans(bundle, timing_caches=timing_caches)
    for plan in read_plans(compiled):
        report = plan.file.replace(".plan", ".layers.json")
        assert report in compiled.files
        assert json.loads((bundle.path / report).read_text())["Layers"]


def test_what_is_compiled_already_is_kept(bundle, timing_caches, nvidia):
    compile_plans(bundle, timing_caches=timing_caches)
    count = len(nvidia[1].configs)
    lines = []
    compile_plans(Bundle.load(bundle.path), timing_caches=timing_caches, say=lines.append)
    assert len(nvidia[1].configs) == count
    assert lines.count("      there already") == 8
    nvidia[1].__version__ = "10.17.0.1"
    assert len(read_plans(compile_plans(Bundle.load(bundle.path), timing_caches=timing_caches, tries=1))) == 16
    assert len(nvidia[1].configs) == count + 8


def test_the_fastest_try_that_is_right_is_kept(bundle, timing_caches, monkeypatch):
    measured = iter([(1e-5, 5.0), (1.0, 1.0), (2e-5, 3.0)] * 8)
    built = []
    measure = trt_plans._measure

    def pretend(session, compiled, reference):
        layers = measure(session, compiled, reference).layers
        distance, median = next(measured)
        built.append(compiled.plan)
        return trt_plans._Try(compiled, layers, distance, median)

    monkeypatch.setattr(trt_plans, "_measure", pretend)
    compiled = compile_plans(bundle, timing_caches=timing_caches, tries=3)
    for i, plan in enumerate(read_plans(compiled)):
        assert (plan.relative_l2, plan.median_ms) == (2e-5, 3.0)
        assert plan_bytes(compiled, plan) == built[3 * i + 2]


def test_plans_that_are_wrong_are_refused_and_leave_the_bundle_as_it_was(bundle, timing_caches, nvidia):
    nvidia[1].distort = 0.01
    with pytest.raises(ParityError, match=r"None of 2 plans of the text_encoder is right: .* 1.0e-02, 1.0e-02"):
        compile_plans(bundle, timing_caches=timing_caches)
    assert Bundle.load(bundle.path).files == bundle.files


def test_the_first_try_takes_the_stored_timings_and_the_others_measure_anew(bundle, timing_caches, nvidia):
    compile_plans(bundle, timing_caches=timing_caches, tries=2)
    (cache,) = timing_caches.iterdir()
    assert cache.name == "tensorrt-10.16.1.11-cuda0.timings"
    before = [config.timings for config in nvidia[1].configs]
    assert before[1::2] == [b"+"] * 8  # second tries
    assert before[0] == b"+"
    cache.write_bytes(b"kept")
    shutil.rmtree(bundle.path / "compiled")
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    manifest["files"] = {name: one for name, one in manifest["files"].items() if "compiled" not in name}
    (bundle.path / "bundle.json").write_text(json.dumps({**manifest, "compiled": []}))
    compile_plans(Bundle.load(bundle.path), timing_caches=timing_caches, tries=1)
    assert nvidia[1].configs[16].timings == b"kept+"


def test_timings_of_another_gpu_are_left_alone(bundle, nvidia):
    compiled = trt_from_onnx(bundle.graph("decoder", 1), PlanOptions(GB), b"of another GPU", lambda _: None)
    assert compiled.timings == b"+"


def test_the_builder_is_told_the_options(bundle, nvidia):
    flags, levels = imitation.tensorrt.Trt.BuilderFlag, imitation.tensorrt.Trt.HardwareCompatibilityLevel
    trt_from_onnx(bundle.graph("decoder", 1), PlanOptions(GB, 3, "ampere_plus", True), b"", lambda _: None)
    trt_from_onnx(bundle.graph("decoder", 1), PlanOptions(GB), b"", lambda _: None)
    compatible, plain = nvidia[1].configs
    assert compatible.flags == {flags.VERSION_COMPATIBLE}
    assert plain.flags == set()  # no TF32
    assert (compatible.hardware_compatibility_level, plain.hardware_compatibility_level) == (
        levels.AMPERE_PLUS,
        levels.NONE,
    )
    assert compatible.limits == {imitation.tensorrt.Trt.MemoryPoolType.WORKSPACE: GB}
    assert (compatible.builder_optimization_level, plain.builder_optimization_level) == (3, 4)
    assert plain.max_aux_streams == 0


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("parse", r"cannot read decoder\.1\.onnx: no importer for operator Fancy \(node fancy_1, operator Fancy\)"),
        (
            "build",
            r"cannot compile decoder\.1\.onnx: \[build\] out of memory.*--optimization-level \(now 4\)",
        ),
    ],
)
def test_what_the_builder_refuses_is_an_error_with_its_words(bundle, nvidia, what, match):
    nvidia[1].refuses = what
    with pytest.raises(BuildError, match=match):
        trt_from_onnx(bundle.graph("decoder", 1), PlanOptions(GB), b"", lambda _: None)


def test_an_interrupt_in_the_monitor_stops_the_build_and_is_raised_after_it(bundle, nvidia, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    answers = []

    def build(self, network, config):
        config.progress_monitor.phase_start("Building", None, 2)
        answers.append(config.progress_monitor.step_complete("Building", 0))

    monkeypatch.setattr(imitation.tensorrt.Builder, "build_serialized_network", build)
    with pytest.raises(KeyboardInterrupt):
        trt_from_onnx(bundle.graph("decoder", 1), PlanOptions(GB), b"", interrupt)
    assert answers == [False]


def test_nested_phases_are_one_share_that_only_grows():
    told = []
    phases = Phases(told.append)
    phases.start("build", None, 2)
    for outer in range(2):
        phases.start("inner", "build", 4)
        for inner in range(4):
            phases.step("inner", inner)
        phases.finish("inner")
        phases.step("build", outer)
    phases.finish("build")
    assert told == [0.0625, 0.125, 0.1875, 0.25, 0.5, 0.5625, 0.625, 0.6875, 0.75, 1.0]
    phases.step("unknown", 3)
    assert len(told) == 10


def test_phases_one_after_another_in_a_step_and_those_of_threads_never_run_backwards():
    """As TensorRT for RTX builds: several phases in one step. Then two phases at once, and a second outermost one."""
    told = []
    phases = Phases(told.append)
    phases.start("build", None, 2)
    for name in ("optimizing", "timing", "refit"):
        phases.start(name, "build", 5)
        for step in range(5):
            phases.step(name, step)
        phases.finish(name)
    assert told == sorted(told)
    assert 0.4 < told[-1] < 0.5  # the third phase still moved it
    phases.start("one", "build", 2)
    phases.start("other", "build", 2)
    phases.step("one", 1)
    phases.step("other", 0)
    phases.step("build", 1)
    phases.start("again", None, 2)
    phases.step("again", 0)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_progress_is_said_once_per_tenth_and_never_backwards():
    lines = []
    progress = Progress({"all": 1}, lines.append)
    with progress.part("all"):
        for share in (0.31, 0.1, 0.35, 0.62, 0.3, 1.2):
            progress.share(share)
    assert [line.split()[0] for line in lines if "%" in line] == ["30", "60", "100"]


def test_room_on_the_gpu_is_looked_at_first(bundle):
    graph, card = bundle.graph("decoder", 1), Gpu(1, "GPU", "8.9", 16 * GB, "13.0")
    assert require_room(bundle, graph, "decoder", card, 12 * GB, None) == 4 * GB
    assert require_room(bundle, graph, "decoder", card, 12 * GB, GB) == GB
    with pytest.raises(BuildError, match=r"needs about 0\.3 GB on the GPU \(cuda:1\), and 0\.1 GB of 17\.2 GB are"):
        require_room(bundle, graph, "decoder", card, GB // 8, None)
    with pytest.raises(BuildError, match=r"needs about 21\.5 GB"):
        require_room(bundle, graph, "decoder", card, 12 * GB, 20 * GB)


def test_room_on_the_disk_is_looked_at_first(bundle, timing_caches, monkeypatch):
    monkeypatch.setattr(plan_writer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(BuildError, match=r"The plan of the text_encoder needs .* and 0\.0 GB\s+are free"):
        compile_plans(bundle, timing_caches=timing_caches)


def test_the_command_compiles_and_says_what_it_did(bundle, tmp_path, capsys):
    arguments = ["trt", str(bundle.path), "--workspace", str(tmp_path / "w"), "--tries", "1", "--json"]
    assert run(cli, "sdturbo-export", arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bundle_id"] == bundle.bundle_id
    assert len(document["plans"]) == 8
    assert run(cli, "sdturbo-export", ["trt", str(bundle.path), "--device", "cuda:7"]) == 4


def test_without_tensorrt_the_command_says_what_to_install(bundle_dir, capsys, monkeypatch):
    imitation.absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert run(cli, "sdturbo-export", ["trt", str(bundle_dir)]) == 4
    assert "pip install '.[tensorrt]'" in capsys.readouterr().err


def install_lean(site, version, library):
    """The package of the lean runtime as pip leaves it, with the bytes of its library. None: without it."""
    (site / "tensorrt_lean_libs").mkdir()
    (site / "tensorrt_lean_libs/__init__.py").touch()
    if library is not None:
        (site / "tensorrt_lean_libs/libnvinfer_lean.so.10").write_bytes(library)
    metadata = site / f"tensorrt_lean_cu13_libs-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_lean_cu13_libs\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "library", "match"),
    [
        (
            None,
            None,
            r"needs the lean runtime of TensorRT 10\.16\.1\.11.*libnvinfer_lean\.so\.10.*tensorrt-lean==10\.16\.1\.11",
        ),
        ("10.15.1.29", b"", r"tensorrt-lean-cu13-libs 10\.15\.1\.29 is installed, expected version 10\.16\.1\.11"),
        ("10.16.1.11", b"no library", r"needs the lean runtime.*(invalid ELF|too short)"),
    ],
)
def test_without_the_lean_runtime_a_version_compatible_build_does_not_begin(
    bundle, timing_caches, nvidia, tmp_path, monkeypatch, version, library, match
):
    site = tmp_path / "site"
    site.mkdir()
    if version is not None:
        install_lean(site, version, library)
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(BuildError, match=match):
        compile_plans(bundle, PlanOptions(version_compatible=True), timing_caches=timing_caches)
    assert nvidia[1].configs == []
    assert read_plans(compile_plans(bundle, timing_caches=timing_caches, tries=1))


def test_with_the_lean_runtime_version_compatible_plans_are_built(bundle, timing_caches, nvidia, tmp_path, monkeypatch):
    import _ctypes

    site = tmp_path / "site"
    site.mkdir()
    install_lean(site, "10.16.1.11", Path(_ctypes.__file__).read_bytes())  # some library that loads
    monkeypatch.syspath_prepend(str(site))
    compiled = compile_plans(bundle, PlanOptions(version_compatible=True), timing_caches=timing_caches, tries=1)
    assert all(plan.key.version_compatible for plan in read_plans(compiled))


@pytest.fixture
def successor(bundle, timing_caches, make_bundle, tmp_path):
    """(a bundle with plans, another with a decoder of another hash that shall replace it)."""
    compiled = compile_plans(bundle, timing_caches=timing_caches, tries=1)
    root = shutil.copytree(make_bundle((1, 2)), tmp_path / "new")
    graph = root / "onnx/decoder.1.onnx"
    model = onnx.load(graph, load_external_data=False)
    model.producer_name = "changed"
    graph.write_bytes(model.SerializeToString())
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"]["onnx/decoder.1.onnx"] = {"sha256": sha256_file(graph), "size": graph.stat().st_size}
    (root / "bundle.json").write_text(json.dumps({**manifest, "bundle_id": identity(manifest)}))
    return compiled, Bundle.load(root)


def test_plans_of_graphs_that_did_not_change_are_kept(successor):
    old, new = successor
    lines = []
    keep_plans(old.path, new.path, lines.append)
    kept = Bundle.load(new.path)
    assert read_plans(kept) == [plan for plan in read_plans(old) if (plan.stage, plan.batch_size) != ("decoder", 1)]
    assert lines == ["      7 of 8 TensorRT plans are of these graphs and stay"]
    assert kept.bundle_id == new.bundle_id
    assert sum(name.startswith("compiled/") for name in kept.files) == 14  # plans and reports of their layers
    shutil.rmtree(old.path)
    assert all(plan_bytes(kept, plan) for plan in read_plans(kept))


def test_no_plan_of_an_altered_bundle_is_kept(successor):
    old, new = successor
    plan = old.path / read_plans(old)[0].file
    plan.write_bytes(b"x" * plan.stat().st_size)
    lines = []
    keep_plans(old.path, new.path, lines.append)
    assert read_plans(Bundle.load(new.path)) == []
    assert "plans are not kept" in lines[0]
    assert plan.name in lines[0]
