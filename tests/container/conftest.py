import pytest
from containers import Podman


@pytest.fixture(scope="session")
def podman(tmp_path_factory):
    """podman with a store that is removed at the end, and the base image in it."""
    podman = Podman(tmp_path_factory.mktemp("podman"))
    try:
        podman.make_base()
        yield podman
    finally:
        podman.remove()


@pytest.fixture(scope="session")
def image(podman):
    """The name of the image for CPUs."""
    podman.build("cpu", "localhost/sdturbo:cpu")
    return "localhost/sdturbo:cpu"
