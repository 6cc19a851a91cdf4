"""The ceiling of this machine: its best convolution and its best matrix product, by any engine that runs here.

Small graphs of products alone, of the shapes that dominate SD-Turbo, run as the stages are run. Rates are operations per
second. A multiply-add is two operations.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.flops import count, flops
from sdturbo import backends
from sdturbo.backends import Backend, BackendChoice
from sdturbo.bundle.description import Stage, TensorSpec
from sdturbo.commands.doctor import report
from sdturbo.errors import BackendUnavailable

CONVS = ((512, 64), (512, 128), (256, 256), (128, 512))  # channels, height and width
MATMULS = ((4096, 1280), (1024, 2048))  # rows, columns
DEPTH = 3
NARROW = 4  # channels that enter and leave, so that copying them costs nothing
INT8_FEATURES = {"avx512_vnni", "amx_int8"}
LIBRARIES = ("openvino", "onnxruntime")


def ceilings(precision: str, threads: int, seconds: float = 2.0) -> dict[str, float]:
    """{"conv": rate, "matmul": rate}, the best over shapes and libraries. precision: fp32, bf16 or int8.

    Raises BackendUnavailable if this machine has no such arithmetic.
    """
    libraries = list(_backends(precision, threads))
    best = {"conv": 0.0, "matmul": 0.0}
    for kind, shapes in (("conv", CONVS), ("matmul", MATMULS)):
        for width, size in shapes:
            model, stage = chain(kind, width, size, quantized=precision == "int8")
            best[kind] = max(best[kind], *(rate(model, stage, backend, seconds) for backend in libraries))
    return best


def best_convolution(precision: str, threads: int, seconds: float) -> float:
    """Operations per second of the best convolution by the first library that runs here. precision: fp32 or bf16.

    Raises BackendUnavailable as `ceilings`.
    """
    backend = next(_backends(precision, threads))
    return max(rate(*chain("conv", width, size, quantized=False), backend, seconds) for width, size in CONVS)


def chain(kind: str, width: int, size: int, *, quantized: bool) -> tuple[onnx.ModelProto, Stage]:
    """A graph of DEPTH equal products between a narrow entry and exit. They are 3×3 convolutions of `width` channels at size²,
    or matrices of `width` rows and `size` columns times size²."""
    random = np.random.default_rng(0)
    channels = width if kind == "conv" else size
    widths = [NARROW, *[channels] * (DEPTH + 1), NARROW]
    shape = [1, NARROW, size, size] if kind == "conv" else [1, width, NARROW]
    nodes: list[onnx.NodeProto] = []
    constants = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "fine": np.float32(0.001),
    }
    value = "x"
    for i, (ci, co) in enumerate(pairwise(widths)):
        kernel = 3 if 0 < i <= DEPTH else 1
        form = (co, ci, kernel, kernel) if kind == "conv" else (ci, co)
        weight = random.standard_normal(form, np.float32) / np.float32(np.sqrt(ci * kernel**2))
        operand = f"w{i}"
        if quantized:
            constants[operand] = np.clip(weight / 0.001, -127, 127).astype(np.int8)
            nodes += [*_quantize(value, f"q{i}"), _node("DequantizeLinear", [operand, "fine", "zero"], f"{operand}f")]
            value, operand = f"q{i}f", f"{operand}f"
        else:
            constants[operand] = weight
        options = {"pads": [kernel // 2] * 4} if kind == "conv" else {}
        out = "y" if i == len(widths) - 2 else f"v{i}"
        nodes.append(_node("Conv" if kind == "conv" else "MatMul", [value, operand], out, **options))
        value = out
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    used = {name for node in nodes for name in node.input}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    read = [tensor for tensor in initializers if tensor.name in used]
    graph = helper.make_graph(nodes, kind, ends[:1], ends[1:], read)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    specs = [(TensorSpec(name, "float32", tuple(shape)),) for name in ("x", "y")]
    return model, Stage(kind, specs[0], specs[1], {})


def rate(model: onnx.ModelProto, stage: Stage, backend: Backend, seconds: float) -> float:
    """Operations per second of the best run within about `seconds`, of three at least."""
    work = flops(count(model))
    x = np.random.default_rng(1).standard_normal(stage.inputs[0].shape_at(1), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        onnx.save(model, str(path))
        session = backend.session(path, stage, 1)
    session.run({"x": x})
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        session.run({"x": x})
        times.append(time.perf_counter() - start)
    return work / min(times)


def _backends(precision: str, threads: int) -> Iterator[Backend]:
    if precision == "int8" and not INT8_FEATURES & set(report()["cpu"]["features"]):
        raise BackendUnavailable(f"this CPU has no int8 dot products ({' or '.join(sorted(INT8_FEATURES))})")
    offered = "fp32" if precision == "int8" else precision
    choices = [BackendChoice(name, precision=offered, num_threads=threads) for name in LIBRARIES]
    offers = {choice: backends.offer_for(choice) for choice in choices}
    if not any(offer.runs for offer in offers.values()):
        raise BackendUnavailable(" ".join(str(offer.reason) for offer in offers.values()))
    for choice, offer in offers.items():
        if offer.runs:
            yield backends.connect(choice)


def _quantize(value: str, name: str) -> Sequence[onnx.NodeProto]:
    return (
        _node("QuantizeLinear", [value, "scale", "zero"], name),
        _node("DequantizeLinear", [name, "scale", "zero"], f"{name}f"),
    )


def _node(operator: str, inputs: Sequence[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=output, **options)
