"""What of benchmarks/gpu runs without a GPU: the smoke test on an imitation of CUDA, and the parts that only compute."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import imitation
import numpy as np
import pytest

from benchmarks.gpu import profile_stages, rtx_build, smoke, smoke_kernels, variants
from benchmarks.gpu.peer import summarise
from benchmarks.gpu.profile_stages import Kernel, describe, kernels_by_time
from benchmarks.gpu.runs import milliseconds, random_inputs
from sdturbo.backends.nvidia.library import Library
from sdturbo.backends.nvidia.onnxruntime import CPU, OrtGpuBackend
from sdturbo.bundle import EMBEDDED, Bundle
from sdturbo.errors import BackendUnavailable, InvalidRequest
from sdturbo_export.errors import BuildError

ROOT = Path(__file__).parents[2]
COMMANDS = ("smoke", "variants", "profile_stages", "peer", "rtx_build", "rtx_layers")


@pytest.fixture
def trial(monkeypatch):
    """The smoke test's stages, on an imitation of CUDA that ends with the test."""
    runtime, _ = imitation.install(monkeypatch)
    monkeypatch.setattr(smoke, "imitate_cuda", lambda: runtime)
    for name in ("RUNS", "REQUESTS", "PROGRAMS"):
        monkeypatch.setattr(smoke, name, 2)
    return smoke.prepare(imitate=True)


def failed(trial):
    return [line.what for line in smoke.report(trial) if line.ok is False]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.gpu.{name}").main(["--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("smoke", []),
        ("variants", [str(EMBEDDED)]),
        ("profile_stages", [str(EMBEDDED), "--backend", "cuda"]),
        ("peer", ["--model", "tiny"]),
    ],
)
def test_without_a_gpu_the_reason_is_an_error(name, arguments, capsys):
    assert importlib.import_module(f"benchmarks.gpu.{name}").main(arguments) == BackendUnavailable.exit_code
    said = capsys.readouterr()
    assert said.err.startswith(f"{name}: ")
    assert said.out == ""


def test_the_smoke_test_passes_on_an_imitation_of_cuda():
    command = [sys.executable, "-m", "benchmarks.gpu.smoke", "--imitate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["failed"] == 0
    judged = [line["what"] for line in report["lines"] if line["ok"]]
    assert "replayed equals NumPy, batch size 4, 4 steps" in judged
    assert "4 threads, 50 requests each" in judged
    for mask in ("0 and 1", "any values"):
        where = f"inpainting between steps, batch size 4, a mask of {mask}"
        assert f"replayed and launched equal NumPy, {where}" in judged
    for line in report["lines"]:
        if "latency" in line["what"] or "petabyte" in line["what"]:
            assert (line["measured"], line["ok"]) == (smoke.NEEDS_GPU, None)


def test_a_kernel_that_is_wrong_by_one_bit_fails(trial, monkeypatch):
    right = smoke_kernels.denoiser
    off = {"denoiser": lambda *given: np.nextafter(right(*given), np.float32(np.inf))}
    monkeypatch.setattr(smoke, "ARITHMETIC", smoke_kernels.ARITHMETIC | off)  # what the kernels are compared with
    lines = failed(trial)
    for way in ("launched", "replayed"):
        assert f"{way} equals NumPy, batch size 1, 1 step" in lines
        assert f"{way} equals NumPy, batch size 4, 4 steps" in lines
    assert "a request is one CUDA graph, batch size 1, 1 step" not in lines


def test_a_recording_that_cannot_be_made_fails(trial, monkeypatch):
    monkeypatch.setitem(
        sys.modules["cuda.bindings"].runtime.fail, "cudaGraphInstantiate", (imitation.cuda.Error(401), 0)
    )
    lines = failed(trial)
    assert "each stage is one CUDA graph, batch size 1" in lines
    assert "a request is one CUDA graph, batch size 4, 4 steps" in lines
    assert "launched equals NumPy, batch size 4, 4 steps" not in lines


def test_what_breaks_in_a_part_is_a_line_and_the_other_parts_go_on(trial, monkeypatch):
    monkeypatch.setitem(
        sys.modules["cuda.bindings"].runtime.fail, "cudaMemGetInfo", (imitation.cuda.Error.cudaErrorMemoryAllocation, 0)
    )
    assert failed(trial) == ["GPU", "programs made and dropped"]


def test_a_failed_line_is_the_exit_code(trial, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "prepare", lambda *, imitate: trial)
    assert smoke.main([]) == 0
    monkeypatch.setattr(smoke, "_same", lambda outputs, expected: False)
    assert smoke.main([]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] > 0


def test_every_kernel_has_its_arithmetic_in_cuda_and_in_numpy():
    for name in smoke_kernels.ARITHMETIC:
        assert f"void {name}(".encode() in smoke_kernels.SOURCE


def test_the_products_options_are_the_first_variant():
    assert list(variants.chosen([])) == list(variants.VARIANTS)
    assert list(variants.chosen(["heuristic", "fused bias"])) == ["product", "fused bias", "heuristic"]
    assert variants.chosen(["product"]) == {"product": {}}
    with pytest.raises(InvalidRequest, match=r"Got variants nchw\. Expected product, channels first"):
        variants.chosen(["nchw"])


def test_a_variant_is_compared_with_the_product_and_a_refused_one_keeps_its_reason(bundle_dir):
    class Refusing:
        form = "plain"

        def session(self, graph, stage, batch_size):
            raise BackendUnavailable("onnxruntime refuses the option\nand says more")

    def make_backend(bundle, options):
        return (
            Refusing() if "cudnn_conv_algo_search" in options else OrtGpuBackend("cuda", [(CPU, {})], "cpu", 0, "fp32")
        )

    free, bundle = iter(range(100, 0, -1)), Bundle.load(bundle_dir)
    chosen = variants.chosen(["fused bias", "heuristic"])
    rows = list(variants.measure(bundle, chosen, make_backend, 2, lambda: next(free)))
    assert [(row["variant"], row["stage"]) for row in rows] == [
        (variant, stage) for variant in ("product", "fused bias", "heuristic") for stage in bundle.stages
    ]
    assert [row.get("relative_l2") for row in rows] == [0.0] * 8 + [None] * 4
    assert [row.get("bytes") for row in rows] == [1] * 8 + [None] * 4
    assert {row["error"] for row in rows[8:]} == {"onnxruntime refuses the option"}
    assert variants._cells(rows[8])[1:] == ["–"] * 4


def test_kernels_are_summed_by_name_over_the_runs():
    events = [
        {"cat": "kernel", "name": "gemm  a\n b", "dur": 4000.0},
        {"cat": "kernel", "name": "gemm a b", "dur": 2000.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 8000.0},
        {"cat": "cpu_op", "name": "gemm a b", "dur": 9e9},
        {"name": "a mark without category"},
    ]
    kernels = kernels_by_time(events, 2)
    assert kernels == [Kernel("Memcpy HtoD", 4.0, 0.5), Kernel("gemm a b", 3.0, 1.0)]
    words, _, *rows = describe("decoder", 9.0, kernels).splitlines()
    assert words == "decoder: a call takes 9.000 ms (median), its 2 kernels 7.000 ms"
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == ["Memcpy HtoD", "4.000", "57.1", "0.5"]


def test_a_torch_without_gpu_is_refused_before_it_traces():
    with pytest.raises(BackendUnavailable, match="sees no GPU"):
        profile_stages.trace(lambda: pytest.fail("was run"), 1)


def test_random_inputs_are_the_stages_and_the_same_each_time():
    bundle = Bundle.load(EMBEDDED)
    for stage in bundle.stages.values():
        first, again = random_inputs(stage, 1), random_inputs(stage, 1)
        for spec in stage.inputs:
            assert (first[spec.name].shape, first[spec.name].dtype) == (spec.shape_at(1), spec.dtype)
            assert np.array_equal(first[spec.name], again[spec.name])
    ids = random_inputs(bundle.stages["text_encoder"], 1)["input_ids"]
    assert 0 <= ids.min() < ids.max() < 49408


def test_the_first_runs_are_not_counted():
    numbers = []
    assert len(milliseconds(numbers.append, 5)) == 5
    assert numbers == list(range(8))


def test_the_peers_figures_are_those_of_the_acceptance():
    assert summarise([1.0, 2.0, 9.0]) == {"median_ms": 2.0, "p99_ms": pytest.approx(8.86), "runs": 3}


def test_a_build_that_is_refused_fails_and_the_others_go_on(monkeypatch, capsys):
    def build(graph, options, timings, tell):
        if graph.name == "decoder.onnx":
            raise BuildError("no importer for operator Fancy")
        for share in (0.0, 0.5, 0.25, 1.0):
            tell(share)
        return type("Compiled", (), {"plan": b"plan"})

    monkeypatch.setattr(Library, "require", lambda self: None)
    monkeypatch.setattr(rtx_build, "trt_from_onnx", build)
    assert rtx_build.main([str(EMBEDDED)]) == 1
    *lines, document = capsys.readouterr().out.splitlines()
    assert lines[2] == "FAIL  decoder at batch size 1: no importer for operator Fancy"
    builds = {build["stage"]: build for build in json.loads(document)["builds"]}
    assert [stage for stage, build in builds.items() if build["error"]] == ["decoder"]
    assert (builds["encoder"]["progress"], builds["encoder"]["backwards"]) == (4, 1)


def test_stages_that_the_bundle_has_not_are_refused(capsys):
    assert rtx_build.main([str(EMBEDDED), "unet"]) == InvalidRequest.exit_code
    assert "Got stages unet. Expected text_encoder" in capsys.readouterr().err
