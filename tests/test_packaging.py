"""The wheel holds the runtime, the server and the exporter, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_wheel_holds_exactly_the_tracked_files_of_the_packages(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "engine", "export"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    packages = ("engine/sdturbo/", "engine/sdturbo_serve/", "export/sdturbo_export/")
    expected = {name.split("/", 1)[1] for name in listed if name.startswith(packages)}
    assert not [name for name in expected if "training" in name]
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_runtime_asks_for_four_packages_only(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    lines = wheel.read(name).decode().splitlines()
    required = [line.split()[1] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(one.split(">")[0] for one in required) == ["click", "numpy", "pillow", "tokenizers"]
    assert "License-Expression: Apache-2.0" in lines


def test_commands_are_installed(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert "sdturbo = sdturbo.commands.cli:main" in text
    assert "sdturbo-export = sdturbo_export.cli:main" in text
    assert "sdturbo-serve = sdturbo_serve.cli:main" in text
