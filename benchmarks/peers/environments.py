"""Each peer's environment and sources: pinned, fetched once, with an error in words if that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_STAMP = "built.txt"
_TORCH = "torch==2.13.0"


class PeerUnavailable(Exception):
    """A peer cannot be installed or run. The message has the reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Pinned requirements of a virtual environment.

    remove: packages to take out again, which break beside the rest. variables: of the processes that build it.
    """

    name: str
    pins: tuple[str, ...]
    remove: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Repository:
    """A program that is published as a Git repository alone, at one commit."""

    name: str
    url: str
    commit: str


DIFFUSERS = Environment("diffusers", (_TORCH, "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0"))
OPTIMUM_ONNX = Environment(
    "optimum-onnx",
    (_TORCH, "optimum-onnx==0.1.0", "transformers==4.57.6", "diffusers==0.36.0", "onnxruntime==1.32.0", "onnx==1.23.2"),
)
OPENVINO_GENAI = Environment(
    "openvino-genai",
    (
        _TORCH,
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "optimum-intel==2.2.0",
        "diffusers==0.39.0",
        "transformers==5.5.4",
        "nncf==3.4.0",
        # what FastSD CPU's OpenVINO path imports besides
        "opencv-python-headless==5.0.0.93",
        "pydantic==2.14.4",
    ),
    remove=("torchvision",),
)
STABLE_DIFFUSION_CPP = Environment(
    "stable-diffusion.cpp",
    ("stable-diffusion-cpp-python==0.4.7", "pillow==13.0.0"),
    variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},  # for the instructions of this CPU
)
FASTSD_CPU = Repository("fastsdcpu", "https://github.com/rupeshs/fastsdcpu", "b5e5cab5c2ad369c56f52b34cd61d010efa489f1")


def python_of(environment: Environment, directory: Path) -> Path:
    """The environment's interpreter. It is built in `directory` if it is not there with these pins. Raises PeerUnavailable."""
    root = directory / environment.name
    python = root / "bin" / "python"
    asked = "\n".join([*environment.pins, *(f"{name}={value}" for name, value in environment.variables.items())])
    stamp = root / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == asked:
        return python
    shutil.rmtree(root, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(root)])
    _run([*pip, "install", *environment.pins], environment.variables)
    if environment.remove:
        _run([*pip, "uninstall", "--yes", *environment.remove])
    stamp.write_text(asked, encoding="utf-8")
    return python


def source_of(repository: Repository, directory: Path) -> Path:
    """The repository's files in `directory`, cloned if they are not there at this commit. Raises PeerUnavailable."""
    root = directory / repository.name
    stamp = root / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == repository.commit:
        return root
    shutil.rmtree(root, ignore_errors=True)
    _run(["git", "clone", "--quiet", "--no-checkout", repository.url, str(root)])
    _run(["git", "-C", str(root), "checkout", "--quiet", repository.commit])
    stamp.write_text(repository.commit, encoding="utf-8")
    return root


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})})
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in errors if "ERROR" in line or "fatal" in line), errors[-1])
        raise PeerUnavailable(f"cannot be installed: {reason.strip()}")
