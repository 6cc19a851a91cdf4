"""CUDA's runtime and TensorRT imitated on the CPU, so that all of our code around them runs: device memory is memory of its
own, work waits in streams until they are synchronised, captures record it, a plan runs its ONNX file in ONNX Runtime.

What is imitated is how our code uses the libraries, not the libraries: `test_api.py` holds every name against the real ones.
"""

import sys
import types

from imitation.cuda import Cuda, Driver
from imitation.tensorrt import Trt
from imitation.tensorrt_rtx import Rtx


def install(monkeypatch, *, rtx=False, **options):
    """Put the imitations in the place of the libraries; returns (cuda, tensorrt).

    rtx: TensorRT for RTX is installed, and TensorRT is not. Otherwise it is the other way round.
    """
    cuda = Cuda(**options)
    trt = Rtx(cuda) if rtx else Trt(cuda)
    absent(monkeypatch, "tensorrt" if rtx else "tensorrt_rtx")
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    driver = Driver(cuda)
    bindings.runtime, bindings.driver, package.bindings = cuda, driver, bindings
    for module in (package, bindings, cuda, driver, trt):
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return cuda, trt


def absent(monkeypatch, *names):
    """These libraries are not installed, whatever this machine has."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
