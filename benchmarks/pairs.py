"""The rows of `make bench-peers`: which form of a program is drawn in turn with which form of ours, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers import forms
from benchmarks.peers.forms import Form
from sdturbo.errors import InvalidRequest

PAIRS_PER_ROW = 9
LOADS = 3  # warm ones of each side, in turn


@dataclass(frozen=True, slots=True)
class Pair:
    """A row: `theirs` is divided by `ours`. asked: the ratio of the time that the full-size model must reach."""

    name: str
    theirs: Form
    ours: Form
    runs: int = PAIRS_PER_ROW
    loads: int = LOADS
    asked: float | None = None


PAIRS = (
    # equal decoder and precision
    Pair("genai-bf16", forms.GENAI, forms.OURS, asked=1.25),
    Pair("genai-plain-bf16", forms.GENAI_PLAIN, forms.OURS),
    Pair("diffusers-compiled-bf16", forms.DIFFUSERS_COMPILED, forms.OURS, loads=1),
    Pair("diffusers-bf16", forms.DIFFUSERS_BF16, forms.OURS),
    Pair("diffusers-fp32", forms.DIFFUSERS_FP32, forms.OURS_FP32),
    Pair("optimum-onnx-fp32", forms.OPTIMUM, forms.OURS_FP32),
    Pair("optimum-onnx-onnxruntime", forms.OPTIMUM, forms.OURS_ONNXRUNTIME, asked=1.12),
    Pair("our-export-in-optimum", forms.OUR_EXPORT_IN_OPTIMUM, forms.OURS_ONNXRUNTIME),
    Pair("genai-tiny-bf16", forms.GENAI_TINY, forms.OURS_TINY, asked=1.12),
    Pair("fastsd-cpu-tiny-bf16", forms.FASTSD_CPU_TINY, forms.OURS_TINY),
    Pair("genai-hybrid-int8", forms.GENAI_HYBRID_INT8, forms.OURS_INT8, asked=1.9),
    Pair("genai-full-int8", forms.GENAI_FULL_INT8, forms.OURS_INT8),
    Pair("genai-tiny-hybrid-int8", forms.GENAI_TINY_HYBRID_INT8, forms.OURS_TINY_INT8, asked=1.3),
    # other pairs
    Pair("genai-int8-weights", forms.GENAI_INT8_WEIGHTS, forms.OURS),
    Pair("genai-bf16-beside-int8", forms.GENAI, forms.OURS_INT8, asked=2.1),
    Pair("kl-beside-tiny-int8", forms.OURS, forms.OURS_TINY_INT8, asked=4.2),
    Pair("stable-diffusion.cpp", forms.STABLE_DIFFUSION_CPP_DIRECT, forms.OURS_FP32, runs=3, loads=1),
)


def named(names: list[str]) -> list[Pair]:
    """The rows of these names, in the suite's order. Raises InvalidRequest for a name that is none."""
    known = [pair.name for pair in PAIRS]
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"Got rows {', '.join(unknown)}. Expected some of {', '.join(known)}.")
    return [pair for pair in PAIRS if pair.name in names]
