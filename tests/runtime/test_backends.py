import importlib.util
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest

from sdturbo import BackendUnavailable, Bundle, InvalidRequest, Pipeline
from sdturbo.backends import BackendChoice, connect, names, offers
from sdturbo.cpu import available_cpus

ON_CPU = ("auto", "openvino", "onnxruntime", "null")
LIBRARIES = ("openvino", "onnxruntime")  # backends named after their library


@pytest.fixture
def hide(monkeypatch):
    """hide(libraries) makes them look not installed."""
    find_spec = importlib.util.find_spec

    def hide(*libraries):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in libraries else find_spec(name))

    return hide


@pytest.fixture
def cpu_with(monkeypatch):
    """cpu_with(capabilities) makes OpenVINO report a CPU that has them."""

    def pretend(*capabilities):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_: list(capabilities))

    return pretend


def reference(name, inputs):
    """What the fake bundle's graphs compute."""
    if name == "text_encoder":
        return inputs["input_ids"][..., None] / 49408 * np.arange(1, 9)
    if name == "denoiser":
        return inputs["latents"] / 2 + inputs["step"] / 10 + inputs["prompt_embeds"].mean((1, 2))[:, None, None, None]
    if name == "decoder":
        tiles = inputs["latents"][:, :3].transpose(0, 2, 3, 1).repeat(8, 1).repeat(8, 2)
        return (tiles * 20 + 128).clip(0, 255).round()
    grey = inputs["image"].reshape(-1, 8, 8, 8, 8, 3).mean((2, 4, 5))[:, None] / 255
    return grey + inputs["posterior_noise"] / 10 + inputs["noise"] * inputs["step"]


def draw(stage, batch_size, seed):
    rng = np.random.default_rng(seed)
    scale = {"int64": 10, "uint8": 256, "float32": 1}
    return {
        spec.name: (rng.random(spec.shape_at(batch_size)) * scale[spec.dtype]).astype(spec.dtype)
        for spec in stage.inputs
    }


@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_sessions_compute_the_graphs(make_bundle, backend, batch_size):
    bundle = Bundle.load(make_bundle((batch_size,)))
    chosen = connect(BackendChoice(backend, precision="fp32"))
    for name, stage in bundle.stages.items():
        session = chosen.session(bundle.graph(name, batch_size), stage, batch_size)
        for seed in range(3):
            inputs = draw(stage, batch_size, seed)
            (output,) = session.run(inputs).values()
            (spec,) = stage.outputs
            assert (output.dtype, output.shape) == (spec.dtype, spec.shape_at(batch_size))
            tolerance = 1 if spec.dtype == "uint8" else 1e-5
            np.testing.assert_allclose(output.astype(float), reference(name, inputs), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_outputs_are_the_callers_own(bundle_dir, backend):
    bundle = Bundle.load(bundle_dir)
    stage = bundle.stages["denoiser"]
    session = connect(BackendChoice(backend, precision="fp32")).session(bundle.graph("denoiser", 1), stage, 1)
    first = session.run(draw(stage, 1, 0))["denoised"]
    kept = first.copy()
    session.run(draw(stage, 1, 1))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_threads_sharing_a_pipeline_get_their_own_pictures(bundle_dir, backend):
    pipe = Pipeline.load(bundle_dir, backend)

    def run(seed):
        return pipe(f"cat {seed % 5}", seed=seed, num_inference_steps=1 + seed % 4, output_type="np").images

    expected = [run(seed) for seed in range(100)]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(run, range(100)))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_graph_that_the_library_refuses_is_a_typed_error(bundle_dir, tmp_path, backend):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    stage = Bundle.load(bundle_dir).stages["decoder"]
    with pytest.raises(BackendUnavailable, match=f"{backend} .* refuses broken.onnx"):
        connect(BackendChoice(backend)).session(tmp_path / "broken.onnx", stage, 1)


@pytest.mark.parametrize("name", ["", "tensorflow", "Null", None])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(InvalidRequest, match=r"expected auto, tensorrt, cuda, .*openvino, onnxruntime, null"):
        connect(BackendChoice(name))


@pytest.mark.parametrize("backend", ["auto", "null", *names()])
@pytest.mark.parametrize("threads", [0, -1, available_cpus() + 1, 10**9, 1.5, "1", True])
def test_impossible_thread_counts_are_refused(backend, threads):
    with pytest.raises(InvalidRequest, match=f"num_threads={threads!r}.*expected 1 to {available_cpus()}"):
        connect(BackendChoice(backend, num_threads=threads))


@pytest.mark.parametrize("backend", ON_CPU)
def test_possible_thread_counts_are_taken(bundle_dir, backend):
    pipe = Pipeline.load(bundle_dir, backend, num_threads=1)
    assert pipe("a cat").images[0].size == (64, 64)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("device", ["cuda", "gpu", "CPU", ""])
def test_an_unknown_device_is_refused(backend, device):
    with pytest.raises(BackendUnavailable, match=repr(device)):
        connect(BackendChoice(backend, device=device))


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "bf16"), ("onnxruntime", "int4"), ("openvino", "fp16"), ("openvino", "int4")],
)
def test_a_precision_that_the_backend_lacks_is_refused(backend, precision):
    with pytest.raises(BackendUnavailable, match=precision):
        connect(BackendChoice(backend, precision=precision))


def test_bf16_is_never_another_precision_under_its_name(bundle_dir):
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        result = Pipeline.load(bundle_dir, "openvino", precision="bf16")("a cat")
        assert (result.backend, result.precision) == ("openvino", "bf16")
    else:
        for backend in ("openvino", "auto"):
            with pytest.raises(BackendUnavailable, match="no bf16 instructions"):
                connect(BackendChoice(backend, precision="bf16"))


def test_openvino_takes_the_fastest_precision_of_the_cpu(cpu_with):
    cpu_with("FP32", "BF16", "INT8")
    assert [connect(BackendChoice("openvino", precision=p)).precision for p in (None, "fp32", "bf16")] == [
        "bf16",
        "fp32",
        "bf16",
    ]
    cpu_with("FP32", "INT8")
    assert [connect(BackendChoice("openvino", precision=p)).precision for p in (None, "fp32")] == ["fp32", "fp32"]
    with pytest.raises(BackendUnavailable, match="Ask for precision fp32"):
        connect(BackendChoice("openvino", precision="bf16"))


@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_missing_library_is_named_with_the_remedy(hide, backend):
    hide(backend)
    assert backend in offers(backend)[0].reason
    extra = {"onnxruntime": "cpu", "openvino": "openvino"}[backend]
    with pytest.raises(
        BackendUnavailable, match=rf"{backend} is not installed\. In a clone .*, `pip install '\.\[{extra}\]'`"
    ):
        connect(BackendChoice(backend))


@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_library_that_does_not_load_is_a_typed_error(monkeypatch, tmp_path, backend):
    (tmp_path / backend).mkdir()
    (tmp_path / backend / "__init__.py").write_text("raise ImportError('libtbb.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, backend)
    with pytest.raises(BackendUnavailable, match=f"{backend}.*libtbb.so"):
        connect(BackendChoice(backend))


def test_auto_takes_the_first_that_runs_and_logs_it(hide, caplog):
    with caplog.at_level(logging.INFO, "sdturbo"):
        assert connect(BackendChoice("auto")).name == "openvino"
    assert "openvino" in caplog.text
    hide("openvino")
    assert connect(BackendChoice("auto")).name == "onnxruntime"


def test_auto_is_never_null(hide):
    assert "null" not in names()
    hide(*LIBRARIES)
    with pytest.raises(BackendUnavailable, match=r"(?s)'openvino' cannot run here.*'onnxruntime' cannot run here"):
        connect(BackendChoice("auto"))


def test_null_is_always_there(hide):
    hide(*LIBRARIES)
    assert all(offer.runs for offer in offers("null"))
    assert connect(BackendChoice("null")).name == "null"


@pytest.mark.parametrize("error", [OSError("GLIBC_2.99 not found"), RuntimeError("no plugin")])
@pytest.mark.parametrize("function", ["offers", "connect"])
def test_a_broken_library_is_named_and_auto_goes_on_to_the_next(monkeypatch, error, function):
    def broken(*_):
        raise error

    monkeypatch.setattr(f"sdturbo.backends.openvino.backend.{function}", broken)
    with pytest.raises(BackendUnavailable, match=f"'openvino' cannot run here: its library.*{error}"):
        connect(BackendChoice("openvino"))
    assert connect(BackendChoice("auto")).name == "onnxruntime"


@pytest.mark.parametrize("options", [{"backend": ["x"]}, {"backend": None}, {"precision": ["fp32"]}, {"device": 0}])
def test_names_that_are_no_strings_are_refused(options):
    with pytest.raises(InvalidRequest, match=r"expected (auto|a name)"):
        connect(BackendChoice(**options))
