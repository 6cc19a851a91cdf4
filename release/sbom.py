"""The SBOM (software bill of materials) of a wheel, by cyclonedx-bom.

It lists the wheel, and the packages that pip installs with its extras for CPUs and for the server, with their versions,
licences and dependencies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("cpu", "openvino", "serve", "heif", "hub", "credentials")


def write_sbom(wheel: Path, sbom: Path, date: int) -> None:
    """Install `wheel` with EXTRAS into an environment of its own, and list that. date: seconds since 1970."""
    with tempfile.TemporaryDirectory() as directory:
        environment = Path(directory, "environment")
        venv.create(environment, with_pip=False)
        python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        clean = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH"
        }  # nothing but the wheel's own
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", f"{wheel.resolve()}[{','.join(EXTRAS)}]"], env=clean, check=True)
        for note in environment.rglob("direct_url.json"):
            note.unlink()  # it holds the wheel's path on this machine
        project = Path(directory, "pyproject.toml")
        project.write_text(_project(wheel), encoding="utf-8")
        command = [sys.executable, "-m", "cyclonedx_py", "environment", str(python), "--pyproject", str(project)]
        subprocess.run(
            [*command, "--mc-type", "library", "--output-reproducible", "--of", "JSON", "-o", str(sbom)],
            env={**clean, "SOURCE_DATE_EPOCH": str(date)},
            check=True,
        )


def _project(wheel: Path) -> str:
    """The wheel's name, version, licence and requirements as a pyproject.toml, which cyclonedx-bom reads."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(file.read(name).decode())
    fields = {"name": "Name", "version": "Version", "description": "Summary", "license": "License-Expression"}
    lines = [f"{key} = {json.dumps(metadata[field])}" for key, field in fields.items()]
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    needed = [
        f"{requirement.name}{requirement.specifier}"
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS)
    ]
    return "\n".join(["[project]", *lines, f"dependencies = {json.dumps(needed)}", ""])
