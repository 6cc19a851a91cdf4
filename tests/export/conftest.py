"""The small seeded checkpoint and its bundles, built once for all tests of the exporter."""

import shutil

import pytest

from sdturbo import Bundle
from sdturbo_export.build import build
from sdturbo_export.options import BuildOptions
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.seeded import write_seeded


@pytest.fixture(scope="session")
def small_path(once):
    return once("small", lambda path: write_seeded(path, small=True))


@pytest.fixture
def copied(small_path, tmp_path):
    """A copy of the small checkpoint that a test may damage."""
    return shutil.copytree(small_path, tmp_path / "copy")


@pytest.fixture(scope="session")
def small_checkpoint(small_path):
    return open_checkpoint(small_path, name="small", source="small:0")


@pytest.fixture(scope="session")
def built_once(small_checkpoint, once):
    """built_once(name, options): a directory with the small model's `bundle`, and the `store` of its stages."""

    def make(name, options):
        return once(name, lambda path: build(small_checkpoint, path / "bundle", options, store=path / "store"))

    return make


@pytest.fixture(scope="session")
def small_build(built_once):
    return built_once("built-small", BuildOptions())


@pytest.fixture(scope="session")
def small_bundle(small_build):
    return Bundle.load(small_build / "bundle")


@pytest.fixture(scope="session")
def half_bundle(built_once):
    return Bundle.load(built_once("built-half", BuildOptions(precision="fp16")) / "bundle")


@pytest.fixture(scope="session")
def batched_build(built_once):
    return built_once("built-batched", BuildOptions(batch_sizes=(1, 2)))


@pytest.fixture(scope="session")
def store(small_build, tmp_path_factory):
    """A store of this process with the stages of the small bundle."""
    return shutil.copytree(small_build / "store", tmp_path_factory.mktemp("stages") / "store")
