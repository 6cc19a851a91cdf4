"""ONNX Runtime's TensorRT provider: `cuda.py` with another provider. Builds its engines at every load and keeps none.

fp32 needs NVIDIA_TF32_OVERRIDE=0 in the environment. The provider would not notice that TensorRT was upgraded under a cache
of its own; `trt.py` checks what it loads. Not yet run on a GPU.
"""

from __future__ import annotations

from sdturbo.backends.nvidia.onnxruntime import TENSORRT, OrtGpuBackend, connect_provider, unavailable
from sdturbo.bundle import Bundle

__all__ = ["connect", "unavailable"]


def connect(
    *, device: str | None, precision: str | None, num_threads: int | None, bundle: Bundle | None
) -> OrtGpuBackend:
    return connect_provider("cuda-tensorrt", TENSORRT, device, precision, bundle)
