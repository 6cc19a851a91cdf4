"""TensorRT packages that do not fit together or not ONNX Runtime, from their metadata alone, as pip leaves it."""

import sys

import imitation
import pytest

from sdturbo import BackendUnavailable, Bundle, backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia import onnxruntime as cuda
from sdturbo.backends.nvidia import packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs the metadata of packages: name -> version."""

    def install(**versions):
        for name, version in versions.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


@pytest.fixture
def gpu_build(monkeypatch):
    """As with onnxruntime-gpu and two GPUs, until a session is made."""
    import onnxruntime

    imitation.install(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.TENSORRT, cuda.CUDA, cuda.CPU])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def test_the_packages_of_the_module_tensorrt_are_told_from_others(installed):
    installed(tensorrt="11.4.0.106", tensorrt_cu13="11.4.0.106", tensorrt_cu13_libs="11.4.0.106")
    installed(tensorrt_lean_cu13="11.4.0.106", tensorrt_dispatch="11.4.0.106", tensorrt_rtx_cu13="1.7.1.116")
    assert set(packages.tensorrt_packages()) == {"tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs"}


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "tensorrt"), ("cuda-tensorrt", "cuda-tensorrt")])
def test_two_tensorrts_of_different_major_versions_are_both_named(gpu_build, installed, name, extra):
    installed(tensorrt_cu12="10.16.1.11", tensorrt_cu12_libs="10.16.1.11", tensorrt_cu13="11.4.0.106")
    with pytest.raises(BackendUnavailable) as refusal:
        backends.connect(BackendChoice(name))
    words = str(refusal.value)
    assert "different major versions are installed, tensorrt-cu12 10.16.1.11 and tensorrt-cu13 11.4.0.106." in words
    assert "`pip uninstall tensorrt-cu12 tensorrt-cu12-libs tensorrt-cu13`" in words
    assert f"`pip install '.[{extra}]'`" in words


def test_two_packages_of_one_major_version_are_one_tensorrt(gpu_build, installed, bundle_dir):
    installed(tensorrt="10.16.1.11", tensorrt_cu13="10.16.1.11", tensorrt_cu13_bindings="10.16.1.11")
    for name in ("tensorrt", "cuda-tensorrt"):
        assert backends.connect(BackendChoice(name)).name == name


def test_onnxruntime_beside_a_tensorrt_that_its_provider_does_not_link_is_refused(gpu_build, installed, bundle_dir):
    installed(tensorrt="11.4.0.106", tensorrt_cu13="11.4.0.106", tensorrt_cu13_libs="11.4.0.106")
    with pytest.raises(BackendUnavailable) as refusal:
        backends.connect(BackendChoice("cuda-tensorrt"), Bundle.load(bundle_dir))
    words = str(refusal.value)
    assert "links libnvinfer.so.10, so TensorRT 10 is expected, and tensorrt 11.4.0.106 and tensorrt-cu13" in words
    assert "`pip uninstall tensorrt tensorrt-cu13 tensorrt-cu13-libs`" in words
    assert "`pip install '.[cuda-tensorrt]'`" in words
    assert backends.connect(BackendChoice("cuda")).name == "cuda"
    assert backends.connect(BackendChoice("tensorrt")).name == "tensorrt"


def test_a_tensorrt_of_no_package_is_left_to_the_provider(gpu_build):
    assert packages.tensorrt_packages() == {}
    assert backends.connect(BackendChoice("cuda-tensorrt")).name == "cuda-tensorrt"


@pytest.mark.parametrize(("content", "major"), [(b"\0libcudart.so.13\0libnvinfer.so.11\0", 11), (b"\0nothing\0", 10)])
def test_the_expected_version_is_that_which_the_provider_links(tmp_path, monkeypatch, content, major):
    library = tmp_path / "onnxruntime/capi" / packages.PROVIDER
    library.parent.mkdir(parents=True)
    (tmp_path / "onnxruntime/__init__.py").touch()
    library.write_bytes(content)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packages.provider_major() == major
