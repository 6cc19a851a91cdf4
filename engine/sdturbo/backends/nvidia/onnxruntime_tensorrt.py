"""ONNX Runtime's TensorRT provider: `onnxruntime.py` with another provider. Not yet run on a GPU.

fp32 needs NVIDIA_TF32_OVERRIDE=0 in the environment. The provider builds its engines at every load and keeps none, because it
would not notice an upgrade of TensorRT under a cache. `tensorrt.py` checks the plans that it loads.
"""

from __future__ import annotations

from sdturbo.backends.choice import Offer
from sdturbo.backends.nvidia.onnxruntime import TENSORRT, OrtGpuBackend, provider_offers
from sdturbo.backends.nvidia.onnxruntime import connect as connect_provider
from sdturbo.bundle import Bundle

NAME = "cuda-tensorrt"


def offers(bundle: Bundle | None) -> list[Offer]:
    return provider_offers(NAME, TENSORRT, bundle)


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> OrtGpuBackend:
    return connect_provider(offer, num_threads, bundle, TENSORRT)
