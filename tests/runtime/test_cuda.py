"""The ONNX Runtime GPU backend on a machine without GPU: its device logic on a CPU provider, and its refusals for real."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import imitation
import numpy as np
import pytest

from sdturbo import BackendUnavailable, Bundle, InvalidRequest, Pipeline
from sdturbo.backends import BackendChoice, connect
from sdturbo.backends.null import NullBackend
from sdturbo.backends.nvidia import onnxruntime as cuda
from sdturbo.bundle.description import ONNXRUNTIME_CUDA, PLAIN

REPOSITORY = Path(__file__).parents[2]
GPU_SITE = os.environ.get(
    "SDTURBO_GPU_SITE"
)  # a directory with onnxruntime-gpu and cuda-bindings: make test-gpu-refusals


def on_cpu(providers=((cuda.CPU, {}),)):
    return cuda.OrtGpuBackend("cuda", list(providers), "cpu", 0, "fp32")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_device_tensors_give_the_pictures_of_the_cpu_backend(make_bundle, steps):
    bundle = Bundle.load(make_bundle((1, 2)))
    device, host = Pipeline(bundle, on_cpu()), Pipeline.load(bundle.path, "onnxruntime")
    assert all(program.replays for program in device._programs.values())
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for image in (None, picture):
        request = {"num_images_per_prompt": 3, "num_inference_steps": steps, "strength": None if image is None else 1.0}
        found, expected = (pipe("a cat", image, **request, output_type="np").images for pipe in (device, host))
        assert np.array_equal(found, expected)


def test_a_provider_that_another_took_the_place_of_is_an_error(bundle_dir):
    bundle = Bundle.load(bundle_dir)
    with pytest.raises(BackendUnavailable, match="CUDAExecutionProvider"):
        on_cpu([(cuda.CUDA, {"device_id": "0"})]).session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1)


def test_products_left_to_the_cpu_are_an_error(bundle_dir):
    backend = on_cpu()

    class Node:
        op_type = "Conv"

    class Part:
        ep_name = cuda.CPU
        get_nodes = staticmethod(lambda: [Node()])

    class Compiled:
        get_providers = staticmethod(lambda: [cuda.CUDA, cuda.CPU])
        get_provider_graph_assignment_info = staticmethod(lambda: [Part()])

    backend._providers = [(cuda.CUDA, {})]
    with pytest.raises(BackendUnavailable, match=r"leave Conv of decoder\.onnx to the CPU"):
        backend._require_provider(Compiled(), Path("decoder.onnx"))


def test_a_refused_cuda_graph_is_logged_and_does_without(bundle_dir, caplog, monkeypatch):
    import onnxruntime

    bundle = Bundle.load(bundle_dir)
    create = onnxruntime.InferenceSession

    def refuse(path, options, providers, **kwargs):
        if providers[0][1].get("enable_cuda_graph"):
            raise RuntimeError("graph capture needs every node on CUDA")
        return create(path, options, providers=providers, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    backend = on_cpu([(cuda.CPU, {"enable_cuda_graph": "1"})])
    backend.session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1)
    assert "without a CUDA graph: graph capture needs" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "cuda-tensorrt"])
def test_without_a_gpu_the_name_is_refused_with_a_remedy(name):
    with pytest.raises(BackendUnavailable, match="install"):
        connect(BackendChoice(name))


def test_options_name_the_gpu_cap_the_memory_and_leave_tf32_off():
    options = cuda.provider_options(cuda.CUDA, 1, 5_000)
    assert (options["device_id"], options["gpu_mem_limit"], options["use_tf32"]) == ("1", "5000", "0")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert cuda.provider_options(cuda.TENSORRT, 1, 5_000)["device_id"] == "1"


def test_fp16_may_use_tensor_cores_and_its_form_has_channels_last():
    """`use_tf32` is ONNX Runtime's switch for tensor cores in convolutions of every precision."""
    options = [
        cuda.provider_options(cuda.CUDA, 0, 5_000, precision, form)
        for precision, form in [("fp32", PLAIN), ("fp16", PLAIN), ("fp16", ONNXRUNTIME_CUDA)]
    ]
    assert [(each["use_tf32"], each["prefer_nhwc"]) for each in options] == [("0", "0"), ("1", "0"), ("1", "1")]
    assert {each["enable_skip_layer_norm_strict_mode"] for each in options} == {"1"}


def with_form(bundle, precision, stages):
    """The bundle in that precision. `stages` have their plain graphs in the form for the CUDA provider too."""
    formed = {
        name: dataclasses.replace(
            stage,
            graphs=stage.graphs | {dataclasses.replace(g, form=ONNXRUNTIME_CUDA): f for g, f in stage.graphs.items()},
        )
        for name, stage in bundle.stages.items()
        if name in stages
    }
    return dataclasses.replace(bundle, precision=precision, stages=bundle.stages | formed)


def test_the_cuda_provider_takes_its_form_where_every_stage_has_it(make_bundle, caplog):
    bundle = Bundle.load(make_bundle((1, 2)))
    whole = with_form(bundle, "fp16", bundle.stages)
    assert cuda.form_for(cuda.CUDA, whole) == ONNXRUNTIME_CUDA
    assert cuda.form_for(cuda.TENSORRT, whole) == PLAIN
    assert cuda.form_for(cuda.CUDA, None) == cuda.form_for(cuda.CUDA, bundle) == PLAIN
    assert caplog.text == ""
    assert cuda.form_for(cuda.CUDA, with_form(bundle, "fp16", ["denoiser", "decoder"])) == PLAIN
    assert "has no graphs of the form onnxruntime-cuda" in caplog.text


def test_a_pipeline_loads_the_graphs_of_its_backends_form(make_bundle):
    bundle = Bundle.load(make_bundle((1, 2)))
    loaded = []

    class Spy(NullBackend):
        form = ONNXRUNTIME_CUDA

        def session(self, graph, stage, batch_size):
            loaded.append((stage.name, batch_size, graph.name))
            return super().session(graph, stage, batch_size)

    with pytest.raises(InvalidRequest, match="has no graph"):
        Pipeline(bundle, Spy())
    whole = with_form(bundle, "fp16", bundle.stages)
    Pipeline(whole, Spy())
    assert len(loaded) == 8


@pytest.fixture
def gpu_build(monkeypatch):
    """As with onnxruntime-gpu and two GPUs, until a session is made."""
    import onnxruntime

    imitation.install(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.TENSORRT, cuda.CUDA, cuda.CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


@pytest.mark.parametrize("found", [None, "", "1"])
def test_fp32_in_tf32_is_refused_where_the_provider_has_no_switch(gpu_build, bundle_dir, monkeypatch, found):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if found is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", found)
    bundle = Bundle.load(bundle_dir)
    with pytest.raises(BackendUnavailable, match=rf"in TF32.*is {found!r}\. Set NVIDIA_TF32_OVERRIDE=0"):
        connect(BackendChoice("cuda-tensorrt"), bundle)
    assert connect(BackendChoice("cuda-tensorrt", precision="fp16")).precision == "fp16"
    assert connect(BackendChoice("cuda"), bundle).precision == "fp32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert connect(BackendChoice("cuda-tensorrt"), bundle).precision == "fp32"


@pytest.mark.parametrize("name", ["cuda", "cuda-tensorrt"])
def test_a_gpu_that_cuda_13_has_no_code_for_is_named(gpu_build, monkeypatch, name):
    monkeypatch.setattr(imitation.cuda.Properties, "major", 7)
    monkeypatch.setattr(imitation.cuda.Properties, "minor", 0)
    with pytest.raises(
        BackendUnavailable, match=r"does not support the Imitated GPU: .* is 7\.0, expected 7\.5 or more"
    ):
        connect(BackendChoice(name))


REFUSALS = """
import sys
from sdturbo import BackendUnavailable, Bundle, Pipeline
from sdturbo.backends.nvidia import onnxruntime as cuda
import onnxruntime
assert onnxruntime.get_available_providers()[:2] == [cuda.TENSORRT, cuda.CUDA], onnxruntime.__file__
bundle = Bundle.load(sys.argv[1])
def refused(what, run):
    try:
        run()
    except BackendUnavailable as error:
        print(what, "refused:", str(error).splitlines()[0])
    else:
        raise SystemExit(f"{what} ran")
for name in ("cuda", "cuda-tensorrt"):
    for device in (None, "cuda:1"):
        refused(name, lambda: Pipeline.load(sys.argv[1], name, device=device))
for provider in (cuda.CUDA, cuda.TENSORRT):  # past the question for GPUs: what the library itself does
    backend = cuda.OrtGpuBackend("cuda", [(provider, cuda.provider_options(provider, 0, 10**9))], "cuda", 0, "fp32")
    refused(provider, lambda: backend.session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1))
"""


@pytest.mark.skipif(not GPU_SITE, reason="needs onnxruntime-gpu beside the CPU build: make test-gpu-refusals")
def test_onnxruntime_gpu_without_a_gpu_never_falls_back(bundle_dir):
    paths = [str(Path(GPU_SITE).resolve()), *(str(REPOSITORY / name) for name in ("engine", "export"))]
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS, str(bundle_dir)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert (
        done.stdout.count("cuda refused: No NVIDIA GPU") == done.stdout.count("cuda-tensorrt refused: No NVIDIA") == 2
    )
    assert "CUDAExecutionProvider refused" in done.stdout
    assert "TensorrtExecutionProvider refused" in done.stdout
