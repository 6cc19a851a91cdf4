"""Each peer's environment: pinned, built once under build/peers, with an error in words if the build fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_STAMP = "built.txt"
_TORCH = "torch==2.13.0"


class PeerUnavailable(Exception):
    """A peer cannot be installed or run. The message has the reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Pinned requirements of a virtual environment. remove: packages to take out again, which break beside the rest."""

    name: str
    pins: tuple[str, ...]
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """A peer: its environment, its worker's file and arguments, and whether its noise is ours."""

    name: str
    environment: Environment
    worker: str
    arguments: tuple[str, ...] = ()
    same_noise: bool = True
    converts: bool = False


_DIFFUSERS = Environment("diffusers", (_TORCH, "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0"))
_OPTIMUM = Environment(
    "optimum-onnx",
    (_TORCH, "optimum-onnx==0.1.0", "transformers==4.57.6", "diffusers==0.36.0", "onnxruntime==1.32.0", "onnx==1.23.2"),
)
_GENAI = Environment(
    "openvino-genai",
    (
        _TORCH,
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "optimum-intel==2.2.0",
        "diffusers==0.39.0",
        "transformers==5.5.4",
        "nncf==3.4.0",
    ),
    remove=("torchvision",),
)
_SDCPP = Environment("stable-diffusion.cpp", ("stable-diffusion-cpp-python==0.4.7", "pillow==13.0.0"))

PEERS = (
    PeerSpec("diffusers fp32", _DIFFUSERS, "diffusers_worker.py", ("fp32",)),
    PeerSpec("diffusers bf16", _DIFFUSERS, "diffusers_worker.py", ("bf16",)),
    PeerSpec("diffusers bf16 compiled", _DIFFUSERS, "diffusers_worker.py", ("bf16", "compile")),
    PeerSpec("optimum-onnx", _OPTIMUM, "optimum_worker.py", converts=True),
    PeerSpec("openvino-genai", _GENAI, "openvino_genai_worker.py", converts=True),
    PeerSpec("stable-diffusion.cpp", _SDCPP, "stable_diffusion_cpp_worker.py", same_noise=False),
)


def python_of(environment: Environment, directory: Path) -> Path:
    """The environment's interpreter. It is built in `directory` if it is not there with these pins. Raises PeerUnavailable."""
    root = directory / environment.name
    python = root / "bin" / "python"
    pins = "\n".join(environment.pins)
    stamp = root / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == pins:
        return python
    shutil.rmtree(root, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(root)])
    _run([*pip, "install", *environment.pins])
    if environment.remove:
        _run([*pip, "uninstall", "--yes", *environment.remove])
    stamp.write_text(pins, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in errors if "ERROR" in line), errors[-1])
        raise PeerUnavailable(f"cannot be installed: {reason.strip()}")
