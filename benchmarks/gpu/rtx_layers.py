"""The layers that NVIDIA's compiler makes of ONNX files, without a GPU: bytes that they move, attentions, norms in fp32.

    python -m benchmarks.gpu.rtx_layers SM89 build/small-fp16/onnx/decoder.onnx

Read from what TensorRT for RTX logs while it builds for a compute capability: SM89 is Ada. Bytes are those of each layer's
inputs, constants and outputs, so they are the traffic if nothing stays in a cache. A norm writes fp32 if a layer that is made
of it does, in a tensor of 1 MB or more: the precision belongs inside a kernel, not into memory. Prints one JSON document as
its last line.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from benchmarks.markdown import table
from sdturbo.backends.nvidia.library import RTX
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo_export.errors import BuildError

# as the log writes them
ELEMENT_BYTES = {
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "FP8": 1,
    "Int8": 1,
    "UInt8": 1,
    "Bool": 1,
    "Int32": 4,
    "Int64": 8,
}
FP32 = "Float"
LARGE = 1_000_000  # bytes of a tensor that a norm should not write in fp32
NORMS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization")
SOFTMAXES = ("Softmax", "Attention")
MOST_KINDS = 18  # rows of the table

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<reads>.*)\], Outputs: \[(?P<writes>.*)"
)
_TENSOR = re.compile(r"Name: (?P<name>.*?), Dimensions: \[(?P<shape>[\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NUMBERS = re.compile(r"_myl\d+_\d+$")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Layer:
    """One launch. reads: inputs and constants, each once. nodes: those of the ONNX graph that it is made of."""

    name: str
    kind: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    nodes: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes that it moves."""
        return sum(tensor.size for tensor in (*self.reads, *self.writes))

    @property
    def group(self) -> str:
        """Layers that do the same work share it."""
        return _NUMBERS.sub("", self.name) if self.kind in ("kgen", "runtime_function") else self.kind

    @property
    def is_attention(self) -> bool:
        """Whether it is a whole attention, whose scores stay on the chip ("mha" is multi-head attention)."""
        return "_mha_" in self.name


@dataclass(frozen=True, slots=True)
class Summary:
    """size, fp32_size: bytes that all layers move, and those of them in fp32. fused: attentions that are one layer."""

    layers: int
    size: int
    fp32_size: int
    attentions: int
    fused: int
    norms: int
    fp32_norms: int

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, {self.size / 1e6:.0f} MB, {self.fp32_size / 1e6:.0f} MB of it in fp32. {self.fused} of"
            f" {self.attentions} attentions are fused. {self.fp32_norms} of {self.norms} norms write fp32"
        )


def parse_layers(log: str) -> list[Layer]:
    """The layers of the last build in a verbose log. Raises BuildError if it lists none, or they cannot be read."""
    _, heading, listed = log.rpartition("Layers:\n")
    lines = listed.partition("\n\n")[0].splitlines()
    layers = [_layer(line) for line in lines if line.startswith("Name: ")]
    if not heading or not layers:
        raise BuildError("The builder's log lists no layers. Expected lines with a name each after `Layers:`.")
    return layers


def summarise(layers: Sequence[Layer], *, norms: Collection[str], softmaxes: Collection[str]) -> Summary:
    """norms, softmaxes: the graph's nodes that are one. An attention is a softmax with its two products."""
    tensors = [tensor for layer in layers for tensor in (*layer.reads, *layer.writes)]
    in_fp32 = {
        node
        for layer in layers
        if any(tensor.dtype == FP32 and tensor.size >= LARGE for tensor in layer.writes)
        for node in layer.nodes
    }
    return Summary(
        layers=len(layers),
        size=sum(tensor.size for tensor in tensors),
        fp32_size=sum(tensor.size for tensor in tensors if tensor.dtype == FP32),
        attentions=len(softmaxes),
        fused=sum(layer.is_attention for layer in layers),
        norms=len(norms),
        fp32_norms=len(in_fp32 & set(norms)),
    )


def nodes_of(graph: Path, operators: Collection[str]) -> set[str]:
    """The names of a graph's nodes that are one of `operators`. Its weights are not read."""
    model = onnx.load(str(graph), load_external_data=False)
    return {node.name for node in model.graph.node if node.op_type in operators}


def compile_layers(graph: Path, capability: str) -> list[Layer]:
    """The layers that TensorRT for RTX builds of `graph` for a compute capability, "SM89".

    Raises BackendUnavailable without the library, InvalidRequest for a capability that it lacks, BuildError with its words.
    """
    rtx = RTX.require()
    capabilities = rtx.ComputeCapability.__members__
    if capability not in capabilities:
        names = ", ".join(name for name in capabilities if name.startswith("SM"))
        raise InvalidRequest(f"Got compute capability {capability!r}. TensorRT for RTX compiles for {names}.")
    if not graph.is_file():
        raise InvalidRequest(f"Got the graph {graph}, which is no file. Expected an ONNX file.")
    log_lines: list[str] = []

    class Log(rtx.ILogger):
        def __init__(self) -> None:
            rtx.ILogger.__init__(self)  # pybind11 wants the class by its name

        def log(self, severity: Any, msg: str) -> None:
            log_lines.append(msg)

    log = Log()
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        error = parser.get_error(0)
        raise BuildError(f"TensorRT for RTX cannot read {graph.name}: {error.desc()} (node {error.node_name()})")
    config = builder.create_builder_config()
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    config.clear_flag(rtx.BuilderFlag.TF32)  # as `trt_from_onnx`
    config.num_compute_capabilities = 1
    config.set_compute_capability(capabilities[capability], 0)
    if builder.build_serialized_network(network, config) is None:
        raise BuildError(f"TensorRT for RTX cannot compile {graph.name} for {capability}: {log_lines[-1]}")
    return parse_layers("\n".join(log_lines))


def report(graph: Path, capability: str) -> tuple[Summary, str]:
    """The summary of a graph, and the table of its layers by the work that they do."""
    layers = compile_layers(graph, capability)
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    moved = {name: sum(layer.size for layer in group) for name, group in groups.items()}
    largest = sorted(moved, key=lambda name: moved[name], reverse=True)[:MOST_KINDS]
    rows = [[name, str(len(groups[name])), f"{moved[name] / 1e6:.1f}"] for name in largest]
    summary = summarise(layers, norms=nodes_of(graph, NORMS), softmaxes=nodes_of(graph, SOFTMAXES))
    return summary, table(("layers", "number", "MB"), rows)


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("capability", help="compute capability, such as SM89")
    parser.add_argument("graphs", nargs="+", type=Path, help="ONNX files")
    arguments = parser.parse_args(command_line)
    summaries: dict[str, Summary] = {}
    try:
        for graph in arguments.graphs:
            summaries[str(graph)], groups = report(graph, arguments.capability)
            print(f"{graph} for {arguments.capability}: {summaries[str(graph)]}\n\n{groups}\n", flush=True)
    except SDTurboError as error:
        print(f"rtx_layers: {error}", file=sys.stderr)
        return error.exit_code
    graphs = {name: asdict(summary) for name, summary in summaries.items()}
    print(json.dumps({"capability": arguments.capability, "graphs": graphs}))
    return 0


def _layer(line: str) -> Layer:
    parts = _LAYER.match(line)
    if parts is None:
        raise BuildError(f"A layer in the builder's log cannot be read: {line[:200]}")
    reads = {tensor.name: tensor for tensor in _tensors(parts["reads"])}
    nodes = frozenset(_NODE.findall(parts["writes"]))
    return Layer(parts["name"], parts["kind"], tuple(reads.values()), tuple(_tensors(parts["writes"])), nodes)


def _tensors(text: str) -> list[Tensor]:
    tensors: list[Tensor] = []
    for name, shape, dtype in _TENSOR.findall(text):
        if dtype not in ELEMENT_BYTES:
            raise BuildError(f"The builder's log has the datatype {dtype!r}. Expected {', '.join(ELEMENT_BYTES)}.")
        count = math.prod(int(size) for size in shape.split(",") if size)
        tensors.append(Tensor(name, dtype, count * ELEMENT_BYTES[dtype]))
    return tensors


if __name__ == "__main__":
    sys.exit(main())
