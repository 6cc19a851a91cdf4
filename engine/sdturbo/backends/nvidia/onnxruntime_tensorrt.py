"""ONNX Runtime's TensorRT provider: `onnxruntime.py` with another provider. Not yet run on a GPU.

fp32 needs NVIDIA_TF32_OVERRIDE=0 in the environment. The provider builds its engines at every load and keeps none, because it
would not notice an upgrade of TensorRT under a cache. `tensorrt.py` checks the plans that it loads. The provider is linked with
one major version of TensorRT, and another one is refused before ONNX Runtime would look for it.
"""

from __future__ import annotations

from sdturbo.backends.choice import Offer, refuse_all
from sdturbo.backends.nvidia.onnxruntime import TENSORRT, OrtGpuBackend, provider_offers
from sdturbo.backends.nvidia.onnxruntime import connect as connect_provider
from sdturbo.backends.nvidia.packages import mixed_majors, provider_refusal
from sdturbo.bundle import Bundle

NAME = "cuda-tensorrt"


def offers(bundle: Bundle | None) -> list[Offer]:
    offered = provider_offers(NAME, TENSORRT, bundle)
    if not any(offer.runs for offer in offered):
        return offered
    refusal = mixed_majors(NAME, NAME) or provider_refusal(NAME, NAME)
    return refuse_all(NAME, refusal) if refusal else offered


def connect(offer: Offer, num_threads: int | None, bundle: Bundle | None) -> OrtGpuBackend:
    return connect_provider(offer, num_threads, bundle, TENSORRT)
