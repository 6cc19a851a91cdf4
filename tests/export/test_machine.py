import subprocess
import sys
from pathlib import Path

import pytest

import machine
from sdturbo.backends.nvidia import gpus


@pytest.mark.parametrize(
    ("told", "engines", "why"),
    [
        (None, "cpu", "no NVIDIA driver"),
        ("", "cpu", "names no GPU"),
        ("No devices were found\n", "cpu", "names no GPU: 'No devices were found'"),
        ("NVIDIA GeForce RTX 4090, 8.9, 580.65.06\n", "tensorrt", "RTX 4090, compute capability 8.9, driver 580.65.06"),
        ("NVIDIA GeForce RTX 5090, 12.0, 590.10\nTesla P4, 6.1, 590.10\n", "tensorrt", "RTX 5090"),
        ("Tesla V100-SXM2-16GB, 7.0, 580.65.06\n", "cpu", "supports the Tesla V100-SXM2-16GB (compute capability 7.0"),
        ("Tesla T4, 7.5, 535.104.05\n", "cpu", "535.104.05 is older than 580"),
    ],
)
def test_the_driver_decides_and_the_reason_is_told(told, engines, why):
    found = machine.choose(lambda: told)
    assert found[0] == engines
    assert why in found[1]


@pytest.mark.parametrize(("script", "engines"), [("exit 9", "cpu"), ("echo 'NVIDIA L4, 8.9, 580.1'", "tensorrt")])
def test_it_runs_as_a_file_without_the_environment(tmp_path, script, engines):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    command = [sys.executable, "-I", "-S", str(Path(machine.__file__))]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{engines}\n"
    assert done.stderr.startswith(f"engines for {engines}: ")


def test_the_least_capability_is_that_of_the_backends():
    assert machine.LEAST_CAPABILITY == gpus.LEAST_CAPABILITY


@pytest.mark.parametrize(("model", "precision"), [("tiny", "fp32"), ("small", "fp16")])
def test_tiny_whose_activations_overflow_float16_gets_engines_in_fp32(model, precision):
    for engines in ("tensorrt", "cuda"):
        command = ["make", "--dry-run", "engines", f"MODEL={model}", f"ENGINES={engines}"]
        told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
        assert f"--precision {precision}" in told
        assert ("overflow float16" in told) == (model == "tiny")
