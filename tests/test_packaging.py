"""The wheel holds the runtime, the server and the exporter, and nothing else. The sources hold the training too."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def built(kind, out):
    """The file that hatchling makes: `kind` is wheel or sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(built("wheel", tmp_path_factory.mktemp("wheel"))) as file:
        yield file


def imported(source):
    """First part of the name of every module that a Python file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {name.split(".")[0] for name in names}


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
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_wheel_holds_three_packages_and_none_imports_what_is_outside(wheel):
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == {"sdturbo", "sdturbo_serve", "sdturbo_export"}
    outside = {"training", "tests", "benchmarks"}
    assert not [name for name in files if outside & set(name.split("/"))]
    assert not [name for name in files if name.endswith(".py") and outside & imported(wheel.read(name))]


def test_wheel_holds_all_of_the_embedded_model(wheel):
    tiny = "sdturbo_export/tiny"
    wanted = {f"{tiny}/training_captions.txt", f"{tiny}/held_out_captions.txt", f"{tiny}/checkpoint/model_index.json"}
    assert wanted | {"sdturbo/bundles/tiny/bundle.json"} <= set(wheel.namelist())
    assert not [name for name in wheel.namelist() if name.startswith(tiny) and name.endswith(".py")]


def test_wheel_holds_types_page_and_licences(wheel):
    names = set(wheel.namelist())
    page = {f"sdturbo_serve/page/{path.name}" for path in (ROOT / "engine/sdturbo_serve/page").iterdir()}
    assert "sdturbo_serve/page/index.html" in page
    assert page | {"sdturbo/py.typed", "sdturbo_serve/py.typed"} <= names
    assert {f"sdturbo/bundles/tiny/{name}" for name in ("LICENSE.md", "NOTICE")} <= names
    licences = {name.partition("/licenses/")[2]: name for name in names if ".dist-info/licenses/" in name}
    assert set(licences) == {"LICENSE", "LICENSE-THIRD-PARTY"}
    others = wheel.read(licences["LICENSE-THIRD-PARTY"]).decode()
    assert all(holder in others for holder in ("Facebook, Inc", "Giovanni Garberoglio", "2021 OpenAI"))


def test_sources_hold_the_training_of_the_embedded_model(tmp_path):
    with tarfile.open(built("sdist", tmp_path)) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    training = {str(path.relative_to(ROOT)) for path in ROOT.glob("export/training/**/*.*") if path.suffix != ".pyc"}
    assert "export/training/tiny/model_card.md" in training
    assert training <= names


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
