"""The programs of the suite, each in the forms that it is measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.peers import conversions
from benchmarks.peers.conversions import Conversion
from benchmarks.peers.environments import (
    DIFFUSERS,
    FASTSD_CPU,
    OPENVINO_GENAI,
    OPTIMUM_ONNX,
    STABLE_DIFFUSION_CPP,
    Environment,
    Repository,
)

Decoder = Literal["KL", "tiny"]
_SHAPES = {"plain": ", as it comes", "static": ", static"}


@dataclass(frozen=True, slots=True)
class Form:
    """A program with the settings that it is measured with.

    program, settings: in words, for the tables. precision: of the arithmetic, and of the weights where that differs.
    decoder: the checkpoint's own (KL), or an AutoencoderTiny. environment: None for this interpreter. conversion: what it
    loads, None for the checkpoint itself. repository: the program's source, whose path is the worker's last argument.
    same_noise: whether a seed gives our noise.
    """

    program: str
    settings: str
    precision: str
    decoder: Decoder
    worker: str
    arguments: tuple[str, ...] = ()
    environment: Environment | None = None
    conversion: Conversion | None = None
    repository: Repository | None = None
    same_noise: bool = True

    @property
    def words(self) -> dict[str, Any]:
        """What a row says of it."""
        names = ("program", "settings", "precision", "decoder")
        return {name: getattr(self, name) for name in names}


def _ours(backend: str, precision: str, conversion: Conversion, decoder: Decoder = "KL") -> Form:
    return Form(
        "sdturbo", f"backend {backend}", precision, decoder, "sdturbo_worker.py", (backend, precision), None, conversion
    )


def _diffusers(program: str, settings: str, precision: str, *options: str) -> Form:
    return Form(program, settings, precision, "KL", "diffusers_worker.py", (precision, *options), DIFFUSERS)


def _genai(form: str, settings: str, precision: str, conversion: Conversion, decoder: Decoder = "KL") -> Form:
    """form: the worker's argument."""
    program, worker = f"OpenVINO GenAI{_SHAPES[form]}", "openvino_genai_worker.py"
    return Form(program, settings, precision, decoder, worker, (form,), OPENVINO_GENAI, conversion)


OURS = _ours("openvino", "bf16", conversions.BUNDLE)
OURS_FP32 = _ours("openvino", "fp32", conversions.BUNDLE)
OURS_ONNXRUNTIME = _ours("onnxruntime", "fp32", conversions.BUNDLE)
OURS_INT8 = _ours("openvino", "int8", conversions.BUNDLE_INT8)
OURS_TINY = _ours("openvino", "bf16", conversions.BUNDLE_TINY_DECODER, "tiny")
OURS_TINY_INT8 = _ours("openvino", "int8", conversions.BUNDLE_INT8_TINY_DECODER, "tiny")

DIFFUSERS_FP32 = _diffusers("diffusers", "as it comes", "fp32")
DIFFUSERS_BF16 = _diffusers("diffusers", "as it comes", "bf16")
DIFFUSERS_COMPILED = _diffusers(
    "diffusers, compiled", "torch.compile on UNet and decoder, channels last, a cache directory", "bf16", "compile"
)

OPTIMUM = Form(
    "optimum-onnx",
    "its own export, ONNX Runtime",
    "fp32",
    "KL",
    "optimum_worker.py",
    environment=OPTIMUM_ONNX,
    conversion=conversions.OPTIMUM,
)
OUR_EXPORT_IN_OPTIMUM = Form(
    "optimum-onnx on our export",
    "`sdturbo-export optimum`, ONNX Runtime",
    "fp32",
    "KL",
    "optimum_worker.py",
    environment=OPTIMUM_ONNX,
    conversion=conversions.OUR_EXPORT_FOR_OPTIMUM,
)

_STATIC = "reshaped to 1×512×512, CACHE_DIR"
_HYBRID = f"{_STATIC}, NNCF's hybrid int8 of the UNet calibrated on our prompts, int8 weights elsewhere"
_FULL = f"{_STATIC}, NNCF's full int8 of the UNet calibrated on our prompts, int8 weights elsewhere"
_TINY = "AutoencoderTiny as `vae_decoder`, scaling factor 1"
GENAI_PLAIN = _genai("plain", "as it comes", "bf16", conversions.OPENVINO)
GENAI = _genai("static", _STATIC, "bf16", conversions.OPENVINO)
GENAI_INT8_WEIGHTS = _genai(
    "static", f"{_STATIC}, NNCF's int8 weights, arithmetic in bf16", "int8 weights", conversions.OPENVINO_INT8_WEIGHTS
)
GENAI_HYBRID_INT8 = _genai("static", _HYBRID, "int8", conversions.OPENVINO_HYBRID_INT8)
GENAI_FULL_INT8 = _genai("static", _FULL, "int8", conversions.OPENVINO_FULL_INT8)
GENAI_TINY = _genai("static", f"{_STATIC}, {_TINY}", "bf16", conversions.OPENVINO_TINY_DECODER, "tiny")
GENAI_TINY_HYBRID_INT8 = _genai(
    "static", f"{_HYBRID}, {_TINY}", "int8", conversions.OPENVINO_HYBRID_INT8_TINY_DECODER, "tiny"
)

FASTSD_CPU_TINY = Form(
    "FastSD CPU",
    "its own code and OpenVINO path with its tiny decoder, on the OpenVINO of GenAI's rows",
    "bf16",
    "tiny",
    "fastsd_cpu_worker.py",
    environment=OPENVINO_GENAI,
    conversion=conversions.OPENVINO_TINY_DECODER,
    repository=FASTSD_CPU,
)
STABLE_DIFFUSION_CPP_DIRECT = Form(
    "stable-diffusion.cpp",
    "built for this CPU (GGML_NATIVE), direct convolutions in UNet and decoder, whose weights it keeps in fp16",
    "fp16 weights",
    "KL",
    "stable_diffusion_cpp_worker.py",
    environment=STABLE_DIFFUSION_CPP,
    same_noise=False,
)
