"""The gain of each exact rewrite of the exporter on each backend: the graph without it and with it, run in turns.

    python benchmarks/rewrites.py                          # modules of SD-Turbo's sizes
    python benchmarks/rewrites.py --model build/checkpoints/small-0     # a checkpoint's stages, each rewrite left out in turn

The ratio is time with / time without, the median over pairs that ran one after the other. A loaded machine slows both.
Prints one JSON document as its last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import nn

from sdturbo import backends
from sdturbo.backends import BackendChoice
from sdturbo.bundle.description import Stage, TensorSpec
from sdturbo_export.graphs.onnx_from_torch import WeightFile, onnx_from_torch
from sdturbo_export.proof.distance import relative_l2
from sdturbo_export.rewrites import rewrite, rewrite_names, rewrites_of
from sdturbo_export.stages import StageDefinition, example_inputs, graph_module, stage_definitions
from sdturbo_export.weights.checkpoint import open_checkpoint

# rewrite -> (channels, side of the square picture, groups), from decoder and UNet of SD-Turbo and of the toy model. For the
# gated unit the picture is a row of tokens.
SIZES = {
    "upsample": ((512, 64, 0), (256, 128, 0), (1280, 8, 0), (640, 32, 0), (64, 64, 0), (32, 128, 0)),
    "group-norm": ((512, 64, 32), (128, 256, 32), (320, 64, 32), (64, 128, 8), (16, 512, 8)),
    "geglu": ((320, 64, 0), (640, 32, 0), (1280, 16, 0), (64, 32, 0)),
}
ENGINES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))


@dataclass(frozen=True, slots=True)
class Case:
    """The same function twice. `make(with_it)` gives a module that the case owns."""

    rewrite: str
    what: str
    make: Callable[[bool], nn.Module]
    inputs: Mapping[str, torch.Tensor]


def module_cases() -> Iterator[Case]:
    """Each rewrite between convolutions, as it stands in a network, because layouts are part of its cost."""
    for name, sizes in SIZES.items():
        for channels, side, groups in sizes:

            def make(with_it: bool, name: str = name, channels: int = channels, groups: int = groups) -> nn.Module:
                torch.manual_seed(0)
                ends: list[nn.Module] = [nn.Conv2d(channels, channels, 1) for _ in range(2)]
                if name == "upsample":
                    body = [Upsample2D(channels, use_conv=True)]
                elif name == "group-norm":
                    body = [nn.GroupNorm(groups, channels), nn.SiLU()]
                else:
                    body = [GEGLU(channels, 4 * channels)]
                    ends = [nn.Linear(channels, channels), nn.Linear(4 * channels, channels)]
                module = nn.Sequential(ends[0], *body, ends[1]).requires_grad_(False)
                if with_it:
                    rewrite(module, (name,))
                return module

            shape = (1, side**2, channels) if name == "geglu" else (1, channels, side, side)
            yield Case(name, f"{channels} channels, {side}²", make, {"x": torch.randn(shape)})


def stage_cases(directory: Path) -> Iterator[Case]:
    checkpoint = open_checkpoint(directory)
    for stage, definition in stage_definitions(checkpoint).items():
        for name in rewrites_of(stage, "fp32"):

            def make(with_it: bool, definition: StageDefinition = definition, name: str = name) -> nn.Module:
                return graph_module(definition, without=() if with_it else (name,))

            yield Case(name, stage, make, example_inputs(definition, 1))


def measure(case: Case, pairs: int, threads: int | None) -> Iterator[dict[str, Any]]:
    """One row for each engine that runs here."""
    with tempfile.TemporaryDirectory() as folder:
        graphs: dict[bool, Path] = {}
        for with_it in (False, True):
            graphs[with_it] = Path(folder) / f"{with_it}.onnx"
            with WeightFile(graphs[with_it].with_suffix(".weights")) as weights:
                onnx_from_torch(case.make(with_it), case.inputs, ["y"], graphs[with_it], weights)
        with torch.no_grad():
            output = case.make(False)(*case.inputs.values())
        arrays = {name: tensor.numpy() for name, tensor in case.inputs.items()}
        stage = Stage(
            "module",
            tuple(TensorSpec(name, str(a.dtype), a.shape) for name, a in arrays.items()),
            (TensorSpec("y", str(output.numpy().dtype), tuple(output.shape)),),
            {},
        )
        for name, precision in ENGINES:
            choice = BackendChoice(name, precision=precision, num_threads=threads)
            if not backends.offer_for(choice).runs:
                continue  # `sdturbo doctor` says why
            backend = backends.connect(choice)
            sessions = {with_it: backend.session(graph, stage, 1) for with_it, graph in graphs.items()}
            outputs = {with_it: session.run(arrays)["y"].astype(np.float64) for with_it, session in sessions.items()}
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(pairs):
                for with_it, session in sessions.items():
                    start = time.perf_counter()
                    session.run(arrays)
                    times[with_it].append((time.perf_counter() - start) * 1e3)
            yield {
                "rewrite": case.rewrite,
                "what": case.what,
                "backend": f"{name} {backend.version.split('-')[0]}",
                "precision": precision,
                "without_ms": min(times[False]),
                "with_ms": min(times[True]),
                "ratio": float(np.median(np.divide(times[True], times[False]))),
                "relative_l2": relative_l2(outputs[True], outputs[False]),
            }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| rewrite | where | backend | without ms | with ms | ratio |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['rewrite']} | {row['what']} | {row['backend']} {row['precision']} | {row['without_ms']:.1f}"
        f" | {row['with_ms']:.1f} | {row['ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint directory whose stages are measured instead of modules")
    parser.add_argument("--rewrite", choices=rewrite_names(), help="this one only")
    parser.add_argument("--pairs", type=int, default=7, help="runs of each graph")
    parser.add_argument("--threads", type=int, help="CPU threads. All by default")
    arguments = parser.parse_args()
    cases = stage_cases(arguments.model) if arguments.model else module_cases()
    rows: list[dict[str, Any]] = []
    for case in cases:
        if arguments.rewrite in (None, case.rewrite):
            for row in measure(case, arguments.pairs, arguments.threads):
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
