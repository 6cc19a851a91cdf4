"""The GPU acceptance: dry, as CI runs it, and in full on the imitations of CUDA and TensorRT."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import imitation
import numpy as np
import pytest

from benchmarks import gpu_acceptance as script
from benchmarks.gpu import engines, limits, requests
from benchmarks.gpu.lines import NEEDS_GPU, Extent
from sdturbo import Bundle, Pipeline, save_png
from sdturbo.backends.null import NullBackend, NullQueue
from sdturbo.files import sha256_file

ROOT = Path(__file__).parent.parent
STAGES = ("text_encoder", "denoiser", "decoder", "encoder")
AT_A_SIZE = [
    *(f"latency, {name}" for name in STAGES[:3]),
    *("stages joined and replayed as one", "joined against stage by stage", "run 1 equals run 2"),
    *("latency, three stages without CUDA graph", "latency, three stages with CUDA graph"),
]
LINES = [
    *("model", "sdturbo", "GPU", "TensorRT"),
    *(f"parity, {name} at batch size {size}" for size in (1, 2) for name in STAGES),
    *("first load, kernels compiled", "second load", "kernels of the second load from the cache"),
    *(f"{what} at batch size {size}" for size in (1, 2) for what in AT_A_SIZE),
    *(
        "load time",
        "GPU memory, peak",
        "recordings that were lost",
        "golden picture",
        "latency, whole request, one step",
        "roofline of this GPU",
    ),
    *(
        line
        for kind in ("image-to-image", "inpainting")
        for line in (f"{kind} as one recording", f"{kind} against stage by stage", f"latency, {kind}, one step")
    ),
    *("streamed against called", "throughput, calls", "throughput, stream"),
    *("soak, 20 requests: memory of the GPU", "soak, 20 requests: memory of the process"),
    "latency, whole request of 2 pictures",
]


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


def report_of(bundle, out, *arguments):
    status = script.main(["--bundle", str(bundle.path), "--out", str(out), *arguments])
    return status, json.loads((out / "report.json").read_text())


def test_a_dry_run_has_every_line_and_judges_no_figure_of_a_gpu(bundle, tmp_path, capsys):
    status, report = report_of(bundle, tmp_path / "out", "--dry", "--batch-size", "1", "--batch-size", "2")
    assert status == 0
    assert [line["what"] for line in report["lines"]] == LINES
    by_name = {line["what"]: line for line in report["lines"]}
    of_a_gpu = [line for line in report["lines"] if line["measured"] == NEEDS_GPU]
    assert all(line["ok"] is None for line in of_a_gpu)
    assert {"GPU", "golden picture", "GPU memory, peak", "soak, 20 requests: memory of the GPU"} <= {
        line["what"] for line in of_a_gpu
    }
    assert by_name["run 1 equals run 2 at batch size 2"]["ok"] is True
    assert by_name["stages joined and replayed as one at batch size 1"]["ok"] is True
    assert by_name["streamed against called"]["ok"] is True
    for kind in ("image-to-image", "inpainting"):
        assert by_name[f"{kind} as one recording"]["ok"] is True
        assert by_name[f"{kind} against stage by stage"]["ok"] is True
    assert report["verdict"] == f"0 lines failed, 12 passed, {len(of_a_gpu)} need a GPU"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert "FAIL" not in (tmp_path / "out/report.txt").read_text()


@pytest.fixture
def short(monkeypatch):
    """Fewer runs than on a GPU."""
    extent = script.Extent
    monkeypatch.setattr(script, "Extent", lambda *names, dry, runs, soak: extent(*names, dry=dry, runs=3, soak=3))


def test_on_a_gpu_plans_are_compiled_and_every_line_is_judged(bundle, tmp_path, monkeypatch, short):
    imitation.install(monkeypatch)
    monkeypatch.setattr(limits, "FULL_SIZE", 0)
    monkeypatch.setattr(limits, "ANY_CARD", 1e5)
    status, report = report_of(bundle, tmp_path / "out")
    assert [line for line in report["lines"] if line["ok"] is False] == []
    assert status == 0
    by_name = {line["what"]: line for line in report["lines"]}
    assert by_name["GPU"]["measured"].startswith("Imitated GPU, compute capability 8.9")
    assert "relative L2" in by_name["parity, denoiser at batch size 2"]["measured"]
    judged = {what for what, line in by_name.items() if line["ok"]}
    assert {"golden picture", "latency, whole request, one step", "soak, 3 requests: memory of the GPU"} <= judged
    assert NEEDS_GPU not in json.dumps(report["lines"])
    assert "second load" not in by_name


@pytest.mark.parametrize(("refuses", "taken", "verdict"), [(None, 4, True), ("kernels", 0, False)])
def test_of_plans_made_ahead_parity_is_measured_and_two_loads_are_timed(
    bundle, tmp_path, monkeypatch, short, refuses, taken, verdict
):
    _, rtx = imitation.install(monkeypatch, rtx=True)
    rtx.refuses = refuses
    before = os.environ["SDTURBO_CACHE_DIR"]
    _, report = report_of(bundle, tmp_path / "out")
    by_name = {line["what"]: line for line in report["lines"]}
    assert "1.7.1.116 (TensorRT for RTX)" in by_name["backend"]["measured"]
    assert [by_name[f"parity, {name} at batch size 2"]["ok"] for name in STAGES] == [True] * 4
    assert by_name["first load, kernels compiled"]["measured"].endswith(" s")
    assert by_name["second load"]["measured"].endswith(" s")
    line = by_name["kernels of the second load from the cache"]
    assert (line["measured"], line["ok"]) == (f"those of {taken} of 4 stages", verdict)
    assert {line["what"] for line in report["lines"] if line["ok"] is False} == (set() if verdict else {line["what"]})
    assert os.environ["SDTURBO_CACHE_DIR"] == before


def test_what_is_slow_wrong_or_growing_fails(bundle, tmp_path, monkeypatch, short):
    cuda, _ = imitation.install(monkeypatch)
    monkeypatch.setattr(limits, "FULL_SIZE", 0)
    monkeypatch.setattr(limits, "ANY_CARD", 1e-6)
    monkeypatch.setattr(requests, "golden_distance", lambda pipe: 12.0)
    launch = cuda.cudaGraphLaunch

    def leak(*arguments):
        cuda.free -= 20_000_000
        return launch(*arguments)

    cuda.cudaGraphLaunch = leak
    status, report = report_of(bundle, tmp_path / "out")
    failed = {line["what"] for line in report["lines"] if line["ok"] is False}
    assert status == 1
    assert failed == {"golden picture", "latency, whole request, one step", "soak, 3 requests: memory of the GPU"}


def test_a_run_that_changes_between_replays_fails(bundle, monkeypatch):
    run = engines.DeviceProgram.run
    offsets = itertools.count(1)  # no two runs alike

    def drift(self, inputs, *, replay=True):
        off = np.int64(next(offsets))
        return {name: value + off.astype(value.dtype) for name, value in run(self, inputs, replay=replay).items()}

    monkeypatch.setattr(engines.DeviceProgram, "run", drift)
    lines = {
        line.what: line.ok for line in engines.stages(bundle, Extent("null", "null:0", dry=True, runs=1, soak=1), 1)
    }
    assert lines["run 1 equals run 2 at batch size 1"] is False
    assert lines["joined against stage by stage at batch size 1"] is False


@pytest.mark.parametrize(("bound", "verdict"), [(1e-6, True), (-1.0, False)])
def test_without_plans_each_stage_is_compared_with_the_cpu(bundle, monkeypatch, bound, verdict):
    """As on ONNX Runtime's GPU providers; here with its CPU provider in their place."""
    monkeypatch.setitem(engines.BOUNDS, bundle.precision, bound)
    lines = list(engines.parity(bundle, Extent("onnxruntime", "cpu", dry=False, runs=1, soak=1)))
    assert [line.what for line in lines] == [line for line in LINES if line.startswith("parity")]
    assert [line.ok for line in lines] == [verdict] * 8
    assert all(line.measured == "relative L2 distance 0.0e+00" for line in lines)


def test_a_bundle_without_the_batch_size_is_refused_with_the_command(bundle, tmp_path, capsys):
    status = script.main(["--bundle", str(bundle.path), "--out", str(tmp_path), "--dry", "--batch-size", "4"])
    assert status != 0
    assert "has no graphs for batch size 4" in capsys.readouterr().err


def test_without_a_gpu_the_run_fails_with_the_reason(bundle, tmp_path, monkeypatch):
    imitation.absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    status, report = report_of(bundle, tmp_path / "out")
    assert status == 1
    (failed,) = (line for line in report["lines"] if line["ok"] is False)
    assert failed["what"] == "machine"
    assert "pip install '.[tensorrt]'" in failed["measured"]


def test_what_breaks_is_a_line_that_failed_and_the_rest_goes_on(bundle, tmp_path, monkeypatch, short):
    _, trt = imitation.install(monkeypatch)
    trt.distort = 0.5
    status, report = report_of(bundle, tmp_path / "out")
    failed = {line["what"]: line["measured"] for line in report["lines"] if line["ok"] is False}
    assert status == 1
    assert "None of 2 plans of the text_encoder is right" in failed["plans"]
    assert "holds no TensorRT plan" in failed["requests"]


@pytest.mark.parametrize(
    ("name", "tensorrt", "cuda", "floor"),
    [
        ("NVIDIA GeForce RTX 4090", 28.0, None, 21.5),
        ("NVIDIA A100-SXM4-80GB", 22.0, None, 11.3),
        ("NVIDIA H100 80GB HBM3", 12.0, 20.0, 3.95),
        ("Tesla T4", 100.0, None, 56.0),
        ("NVIDIA T400", None, None, None),
        ("NVIDIA L4", None, None, None),
    ],
)
def test_limits_and_rooflines_belong_to_the_gpu_by_name(name, tensorrt, cuda, floor):
    assert limits.known(limits.ROOFLINES, name) == floor
    for backend, limit in (("tensorrt", tensorrt), ("cuda", cuda), ("cuda-tensorrt", None)):
        judged, words = limits.latency_limit(backend, name)
        assert judged == (limit or 100.0)
        assert (f"{backend} has no limit of its own on this card" in words) == (limit is None)


@pytest.mark.parametrize(("milliseconds", "verdict"), [(11.9, True), (12.1, False), (90.0, False)])
def test_an_h100_is_held_to_its_own_limit(bundle, monkeypatch, milliseconds, verdict):
    imitation.install(monkeypatch)
    monkeypatch.setattr(imitation.cuda.Properties, "name", b"NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(limits, "FULL_SIZE", 0)
    monkeypatch.setattr(requests, "milliseconds", lambda call, runs: [milliseconds] * runs)
    pipe = Pipeline.load(bundle.path, "onnxruntime")
    latency, floor = requests._latency(pipe, Extent("tensorrt", "cuda:0", dry=False, runs=3, soak=1))
    assert (latency.ok, latency.expected) == (verdict, "median <= 12 ms")
    assert floor.measured == "3.95 ms"


@pytest.mark.parametrize(
    ("backend", "seconds", "taken", "verdicts"),
    [
        ("tensorrt", 4.9, 4.4e9, (True, True)),
        ("tensorrt", 5.1, 4.6e9, (False, False)),
        ("cuda", 60.0, 4.4e9, (None, True)),
    ],
)
def test_load_and_memory_have_limits_for_the_full_size_in_fp16(bundle, monkeypatch, backend, seconds, taken, verdicts):
    extent = Extent(backend, "cuda:0", dry=False, runs=1, soak=1)
    half = dataclasses.replace(bundle, precision="fp16")
    assert [line.ok for line in requests._load(half, extent, seconds, int(taken))] == [None, None]
    monkeypatch.setattr(limits, "FULL_SIZE", 0)
    assert tuple(line.ok for line in requests._load(half, extent, seconds, int(taken))) == verdicts
    assert [line.ok for line in requests._load(bundle, extent, seconds, int(taken))] == [None, None]


def test_the_peak_of_memory_is_seen_though_it_is_free_again_at_the_end(monkeypatch):
    cuda, _ = imitation.install(monkeypatch)
    free = cuda.free
    with requests.PeakMemory(Extent("cuda", "cuda:0", dry=False, runs=1, soak=1)) as memory:
        cuda.free = free - 3_000_000
        time.sleep(0.2)
        cuda.free = free - 1_000_000
    assert memory.bytes == 3_000_000


def test_any_exception_ends_its_line_and_not_the_report(bundle, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("as never before\nand more")

    monkeypatch.setattr(requests, "golden_distance", fail)
    status, report = report_of(bundle, tmp_path / "out", "--dry")
    failed = [line for line in report["lines"] if line["ok"] is False]
    assert status == 1
    assert [(line["what"], line["measured"]) for line in failed] == [
        ("golden picture", "ZeroDivisionError: as never before and more")
    ]
    assert {line["what"] for line in report["lines"]} == set(LINES)


def test_a_run_that_is_killed_leaves_the_lines_it_had(bundle, tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests, "golden_distance", kill)
    with pytest.raises(KeyboardInterrupt):
        script.main(["--bundle", str(bundle.path), "--out", str(tmp_path), "--dry"])
    report = json.loads((tmp_path / "report.json").read_text())
    known = LINES[: LINES.index("golden picture")]
    assert [line["what"] for line in report["lines"]] == known
    assert report["finished"] is False
    text = (tmp_path / "report.txt").read_text().splitlines()
    assert len(text) == len(known) + 1
    assert text[-1] == "not finished"


def test_every_graph_is_parsed_before_the_first_build(bundle, tmp_path, monkeypatch, short):
    _, trt = imitation.install(monkeypatch)
    trt.refuses = "parse"
    _, report = report_of(bundle, tmp_path / "out")
    names = [line["what"] for line in report["lines"]]
    parsed = [line for line in report["lines"] if line["what"].startswith("parsed")]
    assert [line["ok"] for line in parsed] == [False] * 8
    assert "no importer for operator Fancy (node fancy_1, operator Fancy)" in parsed[0]["measured"]
    assert max(i for i, name in enumerate(names) if name.startswith("parsed")) < names.index("plans")


@pytest.mark.parametrize(("stage", "named"), [("text_encoder", True), ("denoiser", True), ("decoder", False)])
def test_parity_names_attention_that_a_fused_kernel_may_sum_in_fp16(bundle, stage, named):
    extent = Extent("tensorrt", "cuda:0", dry=False, runs=1, soak=1)
    for precision in ("fp16", "fp32"):
        line = engines._parity(stage, 1, 1e-6, dataclasses.replace(bundle, precision=precision), extent)
        assert ("attention included, which a fused kernel may sum in fp16" in line.expected) == (
            named and precision == "fp16"
        )


@pytest.mark.parametrize("backend", ["tensorrt", "cuda", "cuda-tensorrt"])
def test_make_installs_the_backends_extra_and_names_it(backend):
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "gpu-acceptance", f"BACKEND={backend}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f'-e ".[{backend}]"' in told
    assert f"--backend {backend}" in told.splitlines()[-1]


def test_inpainting_that_cannot_be_recorded_is_a_line_that_fails(bundle, tmp_path, monkeypatch):
    program = NullBackend.program

    def refuse(self, work):
        raise RuntimeError("no capture here")

    def unrecorded(*arguments, inpainting=None, **options):
        with pytest.MonkeyPatch.context() as patch:
            if inpainting is not None:
                patch.setattr(NullQueue, "record", refuse)
            return program(*arguments, inpainting=inpainting, **options)

    monkeypatch.setattr(NullBackend, "program", unrecorded)
    status, report = report_of(bundle, tmp_path / "out", "--dry")
    assert {line["what"] for line in report["lines"] if line["ok"] is False} == {"inpainting as one recording"}
    assert status == 1


def test_a_recording_that_is_lost_is_a_line_that_fails(bundle, tmp_path, monkeypatch):
    def refuse(self, work):
        raise RuntimeError("no capture here")

    monkeypatch.setattr(NullQueue, "record", refuse)
    status, report = report_of(bundle, tmp_path / "out", "--dry")
    (line,) = [line for line in report["lines"] if line["what"] == "recordings that were lost"]
    assert line["ok"] is False
    assert "decoder at batch size 1" in line["measured"]
    assert status == 1


def test_replays_that_differ_as_sums_do_pass(bundle, monkeypatch):
    run, offsets = engines.DeviceProgram.run, itertools.count(1)

    def drift(self, inputs, *, replay=True):
        outputs = run(self, inputs, replay=replay)
        return outputs | {"latents": outputs["latents"] * np.float32(1 + 1e-4 * next(offsets))}

    monkeypatch.setattr(engines.DeviceProgram, "run", drift)
    extent = Extent("null", "null:0", dry=True, runs=1, soak=1)
    lines = {line.what: line.ok for line in engines.stages(bundle, extent, 1)}
    assert lines["run 1 equals run 2 at batch size 1"] is True
