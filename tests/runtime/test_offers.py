"""What backends offer, what is taken of it, and backends and devices that are added from outside."""

import logging
import os
import subprocess
import sys

import numpy as np
import openvino
import pytest

from sdturbo import BackendUnavailable, Bundle, InvalidRequest, Pipeline, backends
from sdturbo.backends import PRECISIONS, BackendChoice, Offer, connect, offer_for, offers, registry
from sdturbo.backends.choice import fitting
from sdturbo.backends.openvino import devices
from sdturbo.backends.openvino.devices import Arithmetic, Device
from sdturbo.commands.doctor import report
from sdturbo.errors import NotOffered


@pytest.fixture
def register(monkeypatch):
    """`backends.register`, undone when the test ends."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    return backends.register


@pytest.fixture
def dummy(register):
    register("dummy", "dummy_backend")


def images(pipe):
    return pipe("a cat", num_inference_steps=2, output_type="np").images


@pytest.mark.parametrize("name", backends.names())
def test_every_backend_offers_something_and_a_refusal_says_why(bundle_dir, name):
    for bundle in (None, Bundle.load(bundle_dir)):
        found = offers(name, bundle)
        assert found
        assert {offer.backend for offer in found} == {name}
        assert all(len(offer.reason) > 40 for offer in found if not offer.runs)
        assert len({(offer.device, offer.precision) for offer in found}) == len(found)


@pytest.mark.parametrize("name", backends.names())
def test_what_is_offered_connects_and_what_is_refused_raises_the_reason(bundle_dir, name):
    bundle = Bundle.load(bundle_dir)
    for offer in offers(name, bundle):
        choice = BackendChoice(name, *(None if offer.refuses_all else one for one in (offer.device, offer.precision)))
        if offer.runs:
            backend = connect(choice, bundle)
            assert (backend.name, backend.device, backend.precision) == (name, offer.device, offer.precision)
        else:
            with pytest.raises(BackendUnavailable) as raised:
                connect(choice, bundle)
            assert str(raised.value) == offer.reason


def test_without_a_precision_the_first_that_runs_is_taken():
    refused = BackendUnavailable("no bf16 here")
    found = [Offer("x", "cpu", "bf16", refused), Offer("x", "cpu", "fp32"), Offer("x", "gpu:0", "fp32")]
    assert fitting(BackendChoice("x"), found) == found
    assert fitting(BackendChoice("x", "gpu"), found) == found[2:]
    assert fitting(BackendChoice("x", precision="bf16"), found) == found[:1]
    (none,) = fitting(BackendChoice("x", "gpu", "bf16"), found)
    assert isinstance(none.refusal, NotOffered)
    assert "'x' has no precision 'bf16' here, expected one of fp32" in none.reason


def test_offers_are_looked_at_without_compiling_anything(bundle_dir, monkeypatch):
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("compiled"))
    bundle = Bundle.load(bundle_dir)
    for name in backends.names():
        offers(name, bundle)
    report()


def test_a_backend_from_outside_is_connected_listed_and_draws(bundle_dir, dummy):
    assert "dummy" in backends.names(automatic=True)
    expected = images(Pipeline.load(bundle_dir, "null"))
    for choice in ({"backend": "dummy"}, {"device": "dummy"}, {"device": "dummy:0", "precision": "fp16"}):
        pipe = Pipeline.load(bundle_dir, **choice)
        assert (pipe.backend.name, pipe.backend.device) == ("dummy", "dummy:0")
        assert np.array_equal(images(pipe), expected)
    listed = report()["backends"]["dummy"]
    assert listed["runs"]
    assert listed["devices"]["dummy:0"]["fp16"] == "runs"
    assert "no precision 'int8'" in listed["devices"]["dummy:0"]["int8"]


def test_a_backend_that_auto_may_not_take_is_taken_by_name_alone(bundle_dir, register):
    register("dummy", "dummy_backend", automatic=False)
    assert connect(BackendChoice("dummy")).name == "dummy"
    assert "dummy" in report()["backends"]
    with pytest.raises(BackendUnavailable):
        connect(BackendChoice(device="dummy"))


def test_a_name_is_registered_once_and_none_is_known_before(register):
    with pytest.raises(InvalidRequest, match="Unknown backend 'dummy'"):
        connect(BackendChoice("dummy"))
    register("dummy", "dummy_backend")
    assert connect(BackendChoice("dummy")).name == "dummy"
    for taken in ("dummy", "openvino", "auto"):
        with pytest.raises(InvalidRequest, match=f"{taken!r}.*taken"):
            register(taken, "dummy_backend")


def test_auto_passes_over_a_backend_that_refuses_a_graph_and_says_so(bundle_dir, register, caplog):
    register("refusing", "refusing_backend")
    register("dummy", "dummy_backend")
    with caplog.at_level(logging.INFO, "sdturbo"):
        pipe = Pipeline.load(bundle_dir, device="dummy")
    assert pipe.backend.name == "dummy"
    assert images(pipe).shape == (1, 64, 64, 3)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "passed over refusing on dummy:0 in fp16: the library refuses" in warning
    assert "backend dummy" in caplog.text


def test_a_backend_that_was_asked_for_by_name_is_not_passed_over(bundle_dir, register):
    register("refusing", "refusing_backend")
    register("dummy", "dummy_backend")
    with pytest.raises(BackendUnavailable, match="the library refuses"):
        Pipeline.load(bundle_dir, "refusing")


def test_where_every_backend_refuses_all_reasons_are_told(bundle_dir, register):
    register("refusing", "refusing_backend")
    with pytest.raises(BackendUnavailable, match=r"(?s)No backend can run here:.*'openvino' has no device.*refuses"):
        Pipeline.load(bundle_dir, device="dummy")


def test_auto_goes_on_to_the_next_precision_of_a_backend(bundle_dir, monkeypatch, caplog):
    """A CPU that lists bf16 and whose library then refuses it: fp32 of the same backend comes next."""
    compile_model = openvino.Core.compile_model

    def refuse_bf16(core, model, device, config):
        if config["INFERENCE_PRECISION_HINT"] == "bf16":
            raise RuntimeError("bad combination")
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", refuse_bf16)
    get_property = openvino.Core.get_property
    monkeypatch.setattr(
        openvino.Core,
        "get_property",
        lambda core, device, name: ["FP32", "BF16"] if name.startswith("OPT") else get_property(core, device, name),
    )
    backend = Pipeline.load(bundle_dir).backend
    assert (backend.name, backend.precision) == ("openvino", "fp32")
    assert "passed over openvino on cpu in bf16: openvino" in caplog.text
    with pytest.raises(BackendUnavailable, match=r"refuses .*bad combination"):
        Pipeline.load(bundle_dir, "openvino")


def test_openvino_without_avx_refuses_the_graphs_and_auto_draws_with_onnxruntime(tmp_path):
    """The real thing: oneDNN held to SSE 4.1, where OpenVINO's CPU plugin compiles no graph."""

    def generate(name, *options):
        command = [sys.executable, "-m", "sdturbo", "generate", "a cat", "--out", str(tmp_path / name), *options]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41", "SDTURBO_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    named = generate("named.png", "--backend", "openvino")
    if named.returncode == 0:
        pytest.skip("this OpenVINO compiles the graphs without AVX")
    assert named.returncode == BackendUnavailable.exit_code
    assert "refuses" in named.stderr
    assert not (tmp_path / "named.png").exists()
    auto = generate("auto.png")
    assert auto.returncode == 0, auto.stderr
    assert "passed over openvino on cpu in" in auto.stderr
    assert auto.stdout.startswith("onnxruntime")
    assert (tmp_path / "auto.png").exists()


@pytest.fixture
def further_devices(monkeypatch):
    """Two made-up devices of OpenVINO: its CPU under another name, and one that is not there."""
    twin = Device("twin.0", "CPU", (Arithmetic("fp16", "f32"), Arithmetic("fp32", "f32")))
    away = Device(
        "GPU.7", "GPU.7", (Arithmetic("fp16", "f16", "FP16", "This GPU has no fp16"), Arithmetic("fp32", "f32"))
    )
    monkeypatch.setattr("sdturbo.backends.openvino.backend.DEVICES", (*devices.DEVICES, twin, away))


def test_a_row_is_all_that_a_further_device_of_openvino_needs(bundle_dir, further_devices):
    listed = report()["backends"]["openvino"]["devices"]
    assert list(listed) == ["cpu", "twin.0", "GPU.7"]
    assert (listed["twin.0"]["fp16"], listed["twin.0"]["fp32"]) == ("runs", "runs")
    assert "no precision 'bf16'" in listed["twin.0"]["bf16"]
    assert "OpenVINO has no device GPU.7 here" in listed["GPU.7"]["fp32"]
    expected = images(Pipeline.load(bundle_dir, "openvino", precision="fp32"))
    for backend in ("openvino", "auto"):
        pipe = Pipeline.load(bundle_dir, backend, device="twin.0", num_threads=1)
        assert (pipe.backend.device, pipe.backend.precision) == ("twin.0", "fp16")
        assert "INFERENCE_NUM_THREADS" not in pipe.backend._config
        assert np.array_equal(images(pipe), expected)


def test_a_device_that_is_not_there_is_refused_by_its_name_and_hides_no_other(bundle_dir, further_devices):
    with pytest.raises(BackendUnavailable, match=r"OpenVINO has no device GPU\.7 here"):
        Pipeline.load(bundle_dir, "openvino", device="GPU.7")
    with pytest.raises(BackendUnavailable, match=r"no device 'GPU\.0' here, expected one of cpu, twin\.0, GPU\.7"):
        Pipeline.load(bundle_dir, "openvino", device="GPU.0")
    assert Pipeline.load(bundle_dir, "openvino").backend.device == "cpu"


def test_precisions_are_those_that_bundles_and_backends_name():
    known = {offer.precision for name in backends.names() for offer in offers(name) if not offer.refuses_all}
    assert known - {"none"} <= set(PRECISIONS)
    assert offer_for(BackendChoice("onnxruntime", precision="int4")).reason.endswith("one of fp32, fp16, int8.")
