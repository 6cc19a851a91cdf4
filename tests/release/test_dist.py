"""The files of a release: the same bytes wherever they are made, whole, and listed."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import sdturbo
from release.dist import WITHOUT_COMMIT, build, release_date
from release.sbom import EXTRAS

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[2]


def hashes(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Two directories of `make dist`, from two clones, as other users of other countries would make them."""
    made = []
    for umask, zone in ((0o022, "UTC"), (0o077, "Asia/Tokyo")):
        clone = tmp_path_factory.mktemp("some where") / zone.replace("/", "-")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True, umask=umask)
        environment = {**os.environ, "TZ": zone, "HOME": str(clone.parent)}
        environment.pop("SOURCE_DATE_EPOCH", None)
        command = [sys.executable, "-m", "release.dist", "dist"]
        subprocess.run(command, cwd=clone, env=environment, umask=umask, check=True, capture_output=True)
        made.append(clone / "dist")
    return made


def test_two_builds_are_the_same_bytes(releases):
    first, second = map(hashes, releases)
    version = sdturbo.__version__
    assert set(first) == {
        f"sdturbo-{version}-py3-none-any.whl",
        f"sdturbo-{version}-py3-none-any.cdx.json",
        f"sdturbo-{version}.tar.gz",
        "SHA256SUMS",
    }
    assert first == second


def test_the_sums_are_those_of_the_files(releases):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=releases[0], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 3


def test_the_sbom_lists_what_pip_installs(releases):
    (file,) = releases[0].glob("*.cdx.json")
    text = file.read_text(encoding="utf-8")
    sbom = json.loads(text)
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("sdturbo", sdturbo.__version__)
    assert root["licenses"][0]["license"]["id"] == "Apache-2.0"
    components = {component["name"].lower(): component for component in sbom["components"]}
    assert {"numpy", "pillow", "tokenizers", "click", "onnxruntime", "openvino", "fastapi"} <= set(components)
    assert {"torch", "pip", "sdturbo", "pytest"} & set(components) == set()
    assert all(component["version"] and component["purl"].startswith("pkg:pypi/") for component in components.values())
    (direct,) = (entry["dependsOn"] for entry in sbom["dependencies"] if entry["ref"] == root["bom-ref"])
    assert len(direct) > 10
    assert "serialNumber" not in sbom
    assert str(releases[0].parent) not in text
    assert "file:" not in text
    assert set(EXTRAS) >= {"cpu", "openvino", "serve"}


def test_the_sources_make_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert release_date(source) == release_date(ROOT)
    rebuilt, sources = build(source, tmp_path / "dist")
    assert rebuilt.read_bytes() == wheel.read_bytes()
    assert sources.read_bytes() == sdist.read_bytes()


def test_the_sources_hold_every_file_of_the_commit(built):
    command = ["git", "ls-tree", "-r", "--name-only", "HEAD"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(built[1]) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    assert names - {"PKG-INFO"} == set(listed.stdout.split("\n")[:-1])


def test_without_a_commit_the_date_is_fixed(tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert release_date(tmp_path) == WITHOUT_COMMIT
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert release_date(tmp_path) == 1700000000
