"""A release of the last commit, and empty environments with its wheel."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from release.dist import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """(wheel, sdist) of the last commit."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """installed("cpu", "serve"): the directory of the programs in a new environment with the wheel and these extras."""
    wheel, _ = built

    def install(*extras):
        root = tmp_path_factory.mktemp("-".join(("with", *extras)))
        venv.create(root, with_pip=False)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(root / "bin/python"),
            "--quiet",
            "--disable-pip-version-check",
        ]
        what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*pip, "install", what], env=clean, check=True)
        return root / "bin"

    return install
