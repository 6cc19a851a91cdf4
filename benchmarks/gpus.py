"""Peak figures of NVIDIA GPUs, from NVIDIA's own documents: dense products in fp16 with fp32 sums, without sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.flops import Operation

HALF_BYTES = 2


@dataclass(frozen=True, slots=True)
class Gpu:
    """tflops: 10¹² operations per second on tensor cores. bandwidth: 10⁹ bytes per second of device memory."""

    name: str
    tflops: float
    bandwidth: float
    source: str


GPUS = {
    "h100": Gpu("H100 SXM", 989.4, 3350, "H100 datasheet: 1,979 TFLOPS with sparsity, 3.35 TB/s"),
    "a100": Gpu("A100 SXM 80 GB", 312, 2039, "A100 datasheet: 312 TFLOPS, 2,039 GB/s"),
    "4090": Gpu(
        "GeForce RTX 4090", 165.2, 1008, "Ada GPU architecture whitepaper, appendix A: 165.2 TFLOPS, 1008 GB/s"
    ),
    "l4": Gpu("L4", 121, 300, "L4 datasheet: 242 TFLOPS with sparsity, 300 GB/s"),
    "t4": Gpu("T4", 65, 320, "T4 datasheet: 65 TFLOPS, 320 GB/s"),
}


def compute_seconds(operation: Operation, gpu: Gpu) -> float:
    return operation.flops / (gpu.tflops * 1e12)


def memory_seconds(operation: Operation, gpu: Gpu) -> float:
    """Weights, inputs and outputs in fp16, each moved once."""
    return HALF_BYTES * (operation.weights + operation.activations) / (gpu.bandwidth * 1e9)


def lower_bound(operations: Sequence[Operation], gpu: Gpu) -> float:
    """The least seconds of any implementation of these products: for each the larger of its two times."""
    return sum(max(compute_seconds(product, gpu), memory_seconds(product, gpu)) for product in operations)
