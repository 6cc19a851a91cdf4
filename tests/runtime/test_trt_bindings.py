"""The real bindings of TensorRT 10 and 11 and of CUDA, without GPU and libraries: our callbacks are called through them, enums
and types are what we take them for, and what cannot start is a typed error. `make test-tensorrt-bindings` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SITES = [site for site in os.environ.get("SDTURBO_TRT_SITES", "").split(":") if site]

CALLS = """
import numpy as np
import tensorrt
from cuda.bindings import runtime
from pathlib import Path
from sdturbo import BackendUnavailable
from sdturbo.errors import NotOffered
from sdturbo.backends import BackendChoice, connect, offers
from sdturbo.backends.nvidia.stream import CudaStream, Scratch
from sdturbo.backends.nvidia.messages import Messages, logger
from sdturbo.backends.nvidia.library import TENSORRT
from sdturbo.backends.nvidia.tensorrt import TrtEngine
from sdturbo_export.errors import BuildError
from sdturbo_export.tensorrt.trt_from_onnx import Phases, PlanOptions, _monitor, trt_from_onnx

assert TENSORRT.version == tensorrt.__version__ and TENSORRT.wrong_version() is None
messages = Messages()
severity = tensorrt.ILogger.Severity
with messages.listening():
    for one in (severity.ERROR, severity.INFO, severity.INTERNAL_ERROR):
        logger(tensorrt.ILogger).log(one, f"told as {one.name}")
assert logger(tensorrt.ILogger) is logger(tensorrt.ILogger)
assert messages.last() == "told as ERROR; told as INTERNAL_ERROR.", messages.last()

told, stop = [], []
monitor = _monitor(tensorrt.IProgressMonitor, Phases(told.append), stop)
assert isinstance(monitor, tensorrt.IProgressMonitor) and isinstance(logger(tensorrt.ILogger), tensorrt.ILogger)
monitor.phase_start("build", None, 2)
assert monitor.step_complete("build", 0) is True and told == [0.5] and stop == []
broken = _monitor(tensorrt.IProgressMonitor, Phases(lambda share: 1 / 0), stop)
broken.phase_start("build", None, 2)
assert broken.step_complete("build", 0) is False and isinstance(stop[0], ZeroDivisionError)

dtypes = {name: np.dtype(tensorrt.nptype(getattr(tensorrt.DataType, name))).name for name in ("UINT8", "INT64", "FLOAT")}
assert dtypes == {"UINT8": "uint8", "INT64": "int64", "FLOAT": "float32"}, dtypes
assert int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) in (0, 1)
assert "USER_MANAGED" in tensorrt.ExecutionContextAllocationStrategy.__members__
assert all(hasattr(tensorrt.ICudaEngine, name) for name in ("device_memory_size_v2", "create_execution_context"))
assert hasattr(tensorrt.IExecutionContext, "set_device_memory")

def refused(kind, run, text):
    try:
        run()
    except kind as error:
        assert text in str(error), error
        print("refused:", error)
    else:
        raise SystemExit(f"not refused: {text}")

refused(BackendUnavailable, lambda: TrtEngine(TENSORRT, b"plan", "a plan", None, Scratch(), host_code=False), "does not start")
refused(BuildError, lambda: trt_from_onnx(Path("a.onnx"), PlanOptions(1 << 30), b"", lambda share: None), "does not start")
if int(runtime.cudaGetDeviceCount()[0]):  # no GPU
    assert not isinstance(offers("tensorrt")[0].refusal, NotOffered)
    choice = BackendChoice("tensorrt")
    refused(BackendUnavailable, lambda: connect(choice), "No NVIDIA GPU can be used here: there is no NVIDIA driver")
    refused(BackendUnavailable, lambda: CudaStream(0), "The GPU cuda:0 failed to be used: cudaError")
"""


@pytest.mark.skipif(not SITES, reason="needs the real bindings: make test-tensorrt-bindings")
@pytest.mark.parametrize("site", SITES)
def test_our_code_and_the_real_bindings_agree(site):
    paths = [*(str(REPOSITORY / name) for name in ("engine", "export")), str(Path(site).resolve())]
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused:") >= 2
