"""The GPU acceptance: dry, as CI runs it, and in full on the imitations of CUDA and TensorRT."""

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

import imitation
import numpy as np
import pytest

from sdturbo import Bundle, Pipeline, save_png
from sdturbo.files import sha256_file

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu_acceptance.py"
STAGES = ("text_encoder", "denoiser", "decoder", "encoder")
AT_A_SIZE = [
    *(f"latency, {name}" for name in STAGES[:3]),
    *("stages joined and replayed as one", "joined against stage by stage", "run 1 equals run 2"),
    *("latency, three stages without CUDA graph", "latency, three stages with CUDA graph"),
]
LINES = [
    *("model", "sdturbo", "GPU", "TensorRT"),
    *(f"parity, {name} at batch size {size}" for size in (1, 2) for name in STAGES),
    *(f"{what} at batch size {size}" for size in (1, 2) for what in AT_A_SIZE),
    *("load time", "GPU memory taken", "golden picture", "latency, whole request, one step"),
    *("latency, whole request of 2 pictures", "streamed against called", "throughput, calls", "throughput, stream"),
    "roofline of this GPU",
    *("soak, 20 requests: memory of the GPU", "soak, 20 requests: memory of the process"),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_acceptance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(make_bundle, tmp_path):
    """A bundle whose golden picture is that of ONNX Runtime on the CPU."""
    root = shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle")
    pipe = Pipeline.load(root, "onnxruntime")
    save_png(pipe("a cat").images[0], root / "golden.png")
    manifest = json.loads((root / "bundle.json").read_text())
    golden = root / "golden.png"
    manifest["files"]["golden.png"] = {"sha256": sha256_file(golden), "size": golden.stat().st_size}
    (root / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.load(root)


def report_of(script, bundle, out, *arguments):
    status = script.main(["--bundle", str(bundle.path), "--out", str(out), *arguments])
    return status, json.loads((out / "report.json").read_text())


def test_a_dry_run_has_every_line_and_judges_no_figure_of_a_gpu(script, bundle, tmp_path, capsys):
    status, report = report_of(script, bundle, tmp_path / "out", "--dry", "--batch-size", "1", "--batch-size", "2")
    assert status == 0
    assert [line["what"] for line in report["lines"]] == LINES
    by_name = {line["what"]: line for line in report["lines"]}
    of_a_gpu = [line for line in report["lines"] if line["measured"] == script.NEEDS_GPU]
    assert all(line["ok"] is None for line in of_a_gpu)
    assert {"GPU", "golden picture", "GPU memory taken", LINES[-5]} <= {line["what"] for line in of_a_gpu}
    assert by_name["run 1 equals run 2 at batch size 2"]["ok"] is True
    assert by_name["stages joined and replayed as one at batch size 1"]["ok"] is True
    assert by_name["streamed against called"]["ok"] is True
    assert report["verdict"] == f"0 lines failed, 7 passed, {len(of_a_gpu)} need a GPU"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert "FAIL" not in (tmp_path / "out/report.txt").read_text()


@pytest.fixture
def short(script, monkeypatch):
    """Fewer runs than on a GPU."""
    extent = script.Extent
    monkeypatch.setattr(script, "Extent", lambda *names, dry, runs, soak: extent(*names, dry=dry, runs=3, soak=3))


def test_on_a_gpu_plans_are_compiled_and_every_line_is_judged(script, bundle, tmp_path, monkeypatch, short):
    imitation.install(monkeypatch)
    monkeypatch.setattr(script, "FULL_SIZE", 0)
    monkeypatch.setattr(script, "LIMIT", 1e5)
    status, report = report_of(script, bundle, tmp_path / "out")
    assert [line for line in report["lines"] if line["ok"] is False] == []
    assert status == 0
    by_name = {line["what"]: line for line in report["lines"]}
    assert by_name["GPU"]["measured"].startswith("Imitated GPU, compute capability 8.9")
    assert "relative L2" in by_name["parity, denoiser at batch size 2"]["measured"]
    judged = {what for what, line in by_name.items() if line["ok"]}
    assert {"golden picture", "latency, whole request, one step", "soak, 3 requests: memory of the GPU"} <= judged
    assert script.NEEDS_GPU not in json.dumps(report["lines"])


def test_what_is_slow_wrong_or_growing_fails(script, bundle, tmp_path, monkeypatch, short):
    cuda, _ = imitation.install(monkeypatch)
    monkeypatch.setattr(script, "FULL_SIZE", 0)
    monkeypatch.setattr(script, "LIMIT", 1e-6)
    monkeypatch.setattr(script, "golden_distance", lambda pipe: 12.0)
    launch = cuda.cudaGraphLaunch

    def leak(*arguments):
        cuda.free -= 20_000_000
        return launch(*arguments)

    cuda.cudaGraphLaunch = leak
    status, report = report_of(script, bundle, tmp_path / "out")
    failed = {line["what"] for line in report["lines"] if line["ok"] is False}
    assert status == 1
    assert failed == {"golden picture", "latency, whole request, one step", "soak, 3 requests: memory of the GPU"}


def test_a_run_that_changes_between_replays_fails(script, bundle, monkeypatch):
    run = script.DeviceProgram.run
    offsets = itertools.count(1)  # no two runs alike

    def drift(self, inputs, *, replay=True):
        off = np.int64(next(offsets))
        return {name: value + off.astype(value.dtype) for name, value in run(self, inputs, replay=replay).items()}

    monkeypatch.setattr(script.DeviceProgram, "run", drift)
    lines = {
        line.what: line.ok
        for line in script.stages(bundle, script.Extent("null", "null:0", dry=True, runs=1, soak=1), 1)
    }
    assert lines["run 1 equals run 2 at batch size 1"] is False
    assert lines["joined against stage by stage at batch size 1"] is False


@pytest.mark.parametrize(("bound", "verdict"), [(1e-6, True), (-1.0, False)])
def test_without_plans_each_stage_is_compared_with_the_cpu(script, bundle, monkeypatch, bound, verdict):
    """As on ONNX Runtime's GPU providers; here with its CPU provider in their place."""
    monkeypatch.setitem(script.BOUNDS, bundle.precision, bound)
    lines = list(script.parity(bundle, script.Extent("onnxruntime", "cpu", dry=False, runs=1, soak=1)))
    assert [line.what for line in lines] == [line for line in LINES if line.startswith("parity")]
    assert [line.ok for line in lines] == [verdict] * 8
    assert all(line.measured == "relative L2 distance 0.0e+00" for line in lines)


def test_a_bundle_without_the_batch_size_is_refused_with_the_command(script, bundle, tmp_path, capsys):
    status = script.main(["--bundle", str(bundle.path), "--out", str(tmp_path), "--dry", "--batch-size", "4"])
    assert status != 0
    assert "has no graphs for batch size 4" in capsys.readouterr().err


def test_without_a_gpu_the_run_fails_with_the_reason(script, bundle, tmp_path):
    status, report = report_of(script, bundle, tmp_path / "out")
    assert status == 1
    (failed,) = (line for line in report["lines"] if line["ok"] is False)
    assert failed["what"] == "machine"
    assert "pip install '.[tensorrt]'" in failed["measured"]


def test_what_breaks_is_a_line_that_failed_and_the_rest_goes_on(script, bundle, tmp_path, monkeypatch, short):
    _, trt = imitation.install(monkeypatch)
    trt.distort = 0.5
    status, report = report_of(script, bundle, tmp_path / "out")
    failed = {line["what"]: line["measured"] for line in report["lines"] if line["ok"] is False}
    assert status == 1
    assert "None of 2 plans of the text_encoder is right" in failed["plans"]
    assert "holds no TensorRT plan" in failed["requests"]


@pytest.mark.parametrize(
    ("name", "limit", "floor"),
    [
        ("NVIDIA GeForce RTX 4090", 36.0, 21.5),
        ("NVIDIA A100-SXM4-80GB", 36.0, 11.3),
        ("NVIDIA H100 80GB HBM3", None, 3.95),
        ("Tesla T4", None, 56.0),
        ("NVIDIA T400", None, None),
        ("NVIDIA GeForce RTX 4090 D", 36.0, 21.5),
    ],
)
def test_limits_and_rooflines_belong_to_the_gpu_by_name(script, name, limit, floor):
    assert (script._known(script.LIMITS, name), script._known(script.ROOFLINES, name)) == (limit, floor)
