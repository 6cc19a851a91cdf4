"""Every kind of session takes the inputs of its stage and no others: nothing is broadcast, cast or left out in silence."""

import imitation
import numpy as np
import pytest

from sdturbo import Bundle
from sdturbo.backends import BackendChoice, connect
from sdturbo.backends.checks import copy_inputs
from sdturbo.backends.nvidia import onnxruntime as ort_gpu
from sdturbo.errors import InputError, InvalidRequest

KINDS = ["onnxruntime cpu", "openvino cpu", "null cpu", "null null:0", "cuda on a CPU provider", "tensorrt imitated"]


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return Bundle.load(make_bundle((2,)))


@pytest.fixture(params=KINDS)
def denoiser(request, bundle, monkeypatch):
    """A session of the denoiser at batch size 2."""
    graph, stage = bundle.graph("denoiser", 2), bundle.stages["denoiser"]
    if request.param.startswith("cuda"):
        backend = ort_gpu.OrtGpuBackend("cuda", [(ort_gpu.CPU, {})], "cpu", 0, "fp32")
    elif request.param.startswith("tensorrt"):
        imitation.install(monkeypatch)
        backend = connect(BackendChoice("tensorrt"))
        return backend.open(b'{"graph": "%s", "distort": 0}' % str(graph).encode(), stage, 2, graph)
    else:
        backend = connect(BackendChoice(*request.param.split()))
    return backend.session(graph, stage, 2)


def inputs(**changed):
    rng = np.random.default_rng(0)
    right = {
        "latents": rng.standard_normal((2, 4, 8, 8), np.float32),
        "prompt_embeds": rng.standard_normal((2, 77, 8), np.float32),
        "step": np.int64(1),
    }
    return {name: value for name, value in {**right, **changed}.items() if value is not None}


WRONG = [
    ({"step": None}, r"Got the inputs latents, prompt_embeds. Expected latents, prompt_embeds, step"),
    ({"latent": np.zeros((2, 4, 8, 8), np.float32)}, r"Got the inputs .*, latent. Expected latents"),
    (
        {"latents": np.zeros((1, 4, 8, 8), np.float32)},
        r"latents as float32 \(1, 4, 8, 8\), expected float32 \(2, 4, 8, 8\)",
    ),
    ({"latents": np.float32(1)}, r"latents as float32 \(\), expected float32 \(2, 4, 8, 8\)"),
    ({"latents": np.zeros((2, 4, 8, 8))}, r"latents as float64 \(2, 4, 8, 8\), expected float32"),
    ({"step": np.int32(1)}, r"step as int32 \(\), expected int64 \(\)"),
    ({"step": np.array([1])}, r"step as int64 \(1,\), expected int64 \(\)"),
    ({"step": 1}, r"step as int, expected int64 \(\)"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG)
def test_other_inputs_than_the_stages_are_refused(denoiser, changed, words):
    with pytest.raises(InputError, match=words):
        denoiser.run(inputs(**changed))


def test_a_scalar_is_an_array_without_dimensions(denoiser):
    (scalar,), (array,) = (denoiser.run(inputs(step=step)).values() for step in (np.int64(1), np.array(1)))
    assert np.array_equal(scalar, array)


def test_a_refused_run_leaves_the_session_as_it_was(denoiser):
    (expected,) = denoiser.run(inputs()).values()
    with pytest.raises(InputError):
        denoiser.run(inputs(latents=np.ones((2, 4, 8, 8), np.float32), step=1.0))
    (found,) = denoiser.run(inputs()).values()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"input_ids": None},
        {"noise": np.zeros(1)},
        {"input_ids": np.zeros((1, 77), np.int64)},
        {"input_ids": np.zeros((2, 77), np.int32)},
        {"latents": np.zeros((2, 4, 8, 8))},
    ],
)
def test_a_request_in_one_recording_takes_its_inputs_and_no_others(bundle, changed):
    backend = connect(BackendChoice("null", "null:0"))
    sessions = {name: backend.session(bundle.graph(name, 2), stage, 2) for name, stage in bundle.stages.items()}
    program = backend.program(sessions, bundle.steps(2))
    right = {"input_ids": np.ones((2, 77), np.int64), "latents": np.ones((2, 4, 8, 8), np.float32)}
    assert program.run(right)["image"].shape == (2, 64, 64, 3)
    with pytest.raises(InputError, match=r"[Ee]xpected"):
        program.run({name: value for name, value in {**right, **changed}.items() if value is not None})


def test_wrong_inputs_are_a_fault_of_the_program_and_of_no_request():
    with pytest.raises(TypeError) as raised:
        copy_inputs({"x": np.zeros(2)}, {"x": np.zeros(1)})
    assert not isinstance(raised.value, InvalidRequest)
