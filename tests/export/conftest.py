"""The small seeded checkpoint and its bundle, built once for all tests of the exporter."""

import shutil

import pytest

from sdturbo_export.build import build
from sdturbo_export.options import BuildOptions
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.seeded import write_seeded


@pytest.fixture(scope="session")
def small_path(tmp_path_factory):
    return write_seeded(tmp_path_factory.mktemp("checkpoints") / "small", small=True)


@pytest.fixture
def copied(small_path, tmp_path):
    """A copy of the small checkpoint that a test may damage."""
    return shutil.copytree(small_path, tmp_path / "copy")


@pytest.fixture(scope="session")
def small_checkpoint(small_path):
    return open_checkpoint(small_path, name="small", source="small:0")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def half_bundle(small_checkpoint, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "half"
    return build(small_checkpoint, out, BuildOptions(precision="fp16"), store=store)


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint, store, tmp_path_factory):
    return build(small_checkpoint, tmp_path_factory.mktemp("bundles") / "small", store=store)
