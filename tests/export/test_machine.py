import subprocess
import sys
import tomllib
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
        ("Tesla T4, 7.5, 579.99\n", "tensorrt-cu12", "driver 579.99, which is for CUDA 12"),
        ("Tesla T4, 7.5, 535.104.05\n", "tensorrt-cu12", "A driver from 580 up is for CUDA 13"),
        ("Tesla T4, 7.5, 525.60.13\n", "cuda-cu12", "driver 525.60.13, which is for CUDA 12"),
        ("Tesla T4, 7.5, 520.61\n", "cpu", "520.61 is older than 525, which CUDA 12 needs"),
        ("Tesla V100-SXM2-16GB, 7.0, 535.104.05\n", "cpu", "supports the Tesla V100"),
    ],
)
def test_the_driver_decides_and_the_reason_is_told(told, engines, why):
    found = machine.choose(lambda: told)
    assert found[0] == engines
    assert why in found[1]


MAKEFILE = Path(__file__).parents[2] / "Makefile"


def dry_run(*arguments):
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("engines", [*machine.LEAST_DRIVERS.values(), "cuda", "cuda-tensorrt"])
def test_what_is_chosen_is_installed_by_its_extra_and_drawn_with_its_backend(engines):
    extras = tomllib.loads((MAKEFILE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert engines in extras
    lines = dry_run("engines", "MODEL=small", f"ENGINES={engines}").splitlines()
    installed = [line for line in lines if "pip install" in line]
    backend = engines.removesuffix("-cu12")
    assert f'".[{engines}]"' in installed[-1]
    assert lines[-1].endswith(f"--backend {backend}")
    assert any("sdturbo-export trt" in line for line in lines) == (backend == "tensorrt")


@pytest.mark.parametrize("capability", ["", "8.9 12.0"])
def test_plans_for_rtx_cards_are_compiled_and_no_picture_is_drawn(capability):
    lines = dry_run("engines", "MODEL=small", "ENGINES=tensorrt-rtx", f"CAPABILITY={capability}").splitlines()
    assert not any("pip uninstall" in line or "sdturbo generate" in line for line in lines)
    assert '".[tensorrt-rtx]"' in next(line for line in reversed(lines) if "pip install" in line)
    (compile_plans,) = (line for line in lines if "sdturbo-export trt" in line)
    options = [part for number in capability.split() for part in ("--capability", number)]
    assert compile_plans.split()[-2 - len(options) :] == ["--library", "tensorrt-rtx", *options]
    assert lines[-1] == 'echo "no picture is drawn: plans for RTX cards run on such a card"'


@pytest.mark.parametrize(
    ("engines", "packages", "stamps"),
    [
        (
            "tensorrt",
            "tensorrt-cu12 tensorrt-cu12-bindings tensorrt-cu12-libs",
            "tensorrt-cu12 cuda-cu12 cuda-tensorrt",
        ),
        (
            "tensorrt-cu12",
            "tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs",
            "tensorrt cuda cuda-tensorrt",
        ),
        ("cuda", "tensorrt-cu12 tensorrt-cu12-bindings tensorrt-cu12-libs onnxruntime", "tensorrt-cu12 cuda-cu12"),
    ],
)
def test_packages_that_an_extra_excludes_go_first_with_their_stamps(engines, packages, stamps):
    lines = dry_run("engines", "MODEL=small", f"ENGINES={engines}").splitlines()
    removed = next(line for line in lines if "pip uninstall" in line)
    assert removed.split(" --yes ")[1].split() == packages.split()
    forgotten = next(line for line in lines if line.startswith("rm -f "))
    assert forgotten.split()[2:] == [f".venv/.{name}" for name in stamps.split()]


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


@pytest.mark.parametrize("model", ["tiny", "small"])
def test_engines_for_gpus_are_in_fp16(model):
    for engines in ("tensorrt", "tensorrt-rtx", "cuda"):
        command = ["make", "--dry-run", "engines", f"MODEL={model}", f"ENGINES={engines}"]
        told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
        assert "--precision fp16" in told
