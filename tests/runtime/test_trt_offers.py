"""What the TensorRT backend offers, on imitations: GPUs, drivers and libraries that are refused in words."""

import enum
import logging
import shutil
import subprocess
import sys

import imitation
import pytest
from imitation.cuda import Error
from imitation.plans import with_plans

from sdturbo import BackendUnavailable, Bundle, backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia import gpus


@pytest.fixture
def bundle(make_bundle, tmp_path, nvidia):
    return with_plans(Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle")))


def test_auto_takes_plans_where_they_fit_and_says_why_not_elsewhere(bundle_dir, bundle, caplog):
    with caplog.at_level(logging.INFO, "sdturbo"):
        assert backends.connect(BackendChoice("auto"), bundle).name == "tensorrt"
        assert backends.connect(BackendChoice("auto"), Bundle.load(bundle_dir)).name != "tensorrt"
    assert "holds no TensorRT plan for the text_encoder" in caplog.text


@pytest.mark.parametrize(
    ("options", "device", "match"),
    [
        ({"gpus": 1}, "cuda:1", "no device 'cuda:1' here, expected one of cuda:0"),
        ({"gpus": 0}, None, "no device cuda:0 here, this machine has none"),
        ({}, "cpu", "no device 'cpu'"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, options, device, match):
    imitation.install(monkeypatch, **options)
    with pytest.raises(BackendUnavailable, match=match):
        backends.connect(BackendChoice("tensorrt", device=device))


NoDevice = enum.IntEnum("NoDevice", {"cudaErrorNoDevice": 100})


@pytest.mark.parametrize(
    ("driver", "error", "match"),
    [
        (0, Error.cudaErrorInsufficientDriver, r"there is no NVIDIA driver .*`--gpus all`"),
        (0, NoDevice.cudaErrorNoDevice, r"there is no NVIDIA driver"),
        (12040, Error.cudaErrorInsufficientDriver, r"supports CUDA 12\.4, the installed .* 13\.5 .*Update the driver"),
        (13000, NoDevice.cudaErrorNoDevice, r"driver is there, for CUDA 13\.0, and shows no GPU \(cudaErrorNoDevice"),
        (13000, Error.cudaErrorIllegalState, r"CUDA says cudaErrorIllegalState \(401\)\. Look at"),
    ],
)
def test_what_cuda_says_of_driver_and_gpu_is_told_with_its_remedy(monkeypatch, driver, error, match):
    """With bindings that are newer than the driver: of one major version they run together."""
    cuda, _ = imitation.install(monkeypatch, driver=driver)
    cuda.cudaRuntimeGetVersion = lambda: (Error.cudaSuccess, 13050)
    cuda.fail["cudaGetDeviceCount"] = (error, 0)
    with pytest.raises(BackendUnavailable, match=match) as refusal:
        backends.connect(BackendChoice("tensorrt"))
    assert ("Update the driver" in str(refusal.value)) == (driver == 12040)


@pytest.mark.parametrize(("value", "words"), [(None, "it is not set"), ("", "it is ''"), ("7", "it is '7'")])
def test_a_driver_that_shows_no_gpu_names_the_variable_that_may_hide_it(nvidia, monkeypatch, value, words):
    nvidia[0].fail["cudaGetDeviceCount"] = (NoDevice.cudaErrorNoDevice, 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(BackendUnavailable, match=rf"{words}\. A container needs `--gpus all`"):
        gpus.find_gpus()


def test_a_gpu_and_a_tensorrt_that_are_not_supported_are_named(nvidia, monkeypatch):
    monkeypatch.setattr(imitation.cuda.Properties, "major", 6)
    with pytest.raises(
        BackendUnavailable, match=r"compute capability is 6\.9, expected 7\.5 or more. Use another GPU.* or the CPU"
    ):
        backends.connect(BackendChoice("tensorrt"))
    nvidia[1].__version__ = "9.3.0"
    with pytest.raises(BackendUnavailable, match=r"TensorRT 9\.3\.0 is installed, expected 10 or 11"):
        backends.connect(BackendChoice("tensorrt"))


def test_a_library_that_does_not_load_is_a_typed_error(tmp_path):
    """As with the bindings' wheel alone: `import tensorrt` fails for want of libnvinfer."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    )
    for name in ("cuda", "cuda/bindings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom sdturbo.backends import BackendChoice, connect\n"
        "connect(BackendChoice('tensorrt'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (
        "BackendUnavailable: The backend 'tensorrt' cannot run here: its library is installed but does not"
        in done.stderr
    )
    assert "libnvinfer.so.10" in done.stderr


def test_without_the_library_the_backend_says_what_to_install(monkeypatch):
    imitation.absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(BackendUnavailable, match=r"pip install '\.\[tensorrt\]'"):
        backends.connect(BackendChoice("tensorrt"))


def test_a_gpu_that_is_full_does_not_hide_the_others(nvidia):
    cuda, _ = nvidia
    assert [one.index for one in gpus.find_gpus()] == [0, 1]
    assert "cudaSetDevice" not in cuda.calls  # it would take memory on each
    assert gpus.free_memory(1) == 12 << 30
    cuda.fail["cudaSetDevice"] = (Error.cudaErrorMemoryAllocation, 0)
    assert len(gpus.find_gpus()) == 2
    with pytest.raises(BackendUnavailable, match="cuda:1 cannot be used: cudaErrorMemoryAllocation"):
        gpus.free_memory(1)


def test_an_installed_gpu_library_that_auto_passes_over_is_a_warning(bundle_dir, nvidia, caplog):
    with caplog.at_level(logging.WARNING, "sdturbo"):
        backends.connect(BackendChoice("auto"), Bundle.load(bundle_dir))
    assert "passed over: The bundle" in caplog.text


def test_offers_name_every_gpu_and_hash_each_graph_once(bundle, monkeypatch):
    hashed, graph_sha256 = [], Bundle.graph_sha256
    monkeypatch.setattr(
        Bundle, "graph_sha256", lambda self, graph: (hashed.append(graph), graph_sha256(self, graph))[1]
    )
    offered = backends.offers("tensorrt", bundle)
    assert [(offer.device, offer.precision) for offer in offered if offer.runs] == [
        ("cuda:0", "fp32"),
        ("cuda:1", "fp32"),
    ]
    assert all("in fp32, as its graphs say, not in 'fp16'" in offer.reason for offer in offered if not offer.runs)
    assert len(hashed) == len(set(hashed)) == 6  # three stages, two batch sizes
