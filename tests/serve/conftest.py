"""The hand-made bundle with a golden picture that its engine really draws, and servers around it."""

import hashlib
import json

import pytest
from serving import Gate, client_of, listening, load

from sdturbo import save_png
from sdturbo.bundle.description import golden_image


@pytest.fixture(scope="session")
def make_serve_bundle(make_bundle):
    """make_serve_bundle(batch_sizes): a bundle of 64x64 pictures, or others, with which /readyz can be reached."""

    def make(batch_sizes, **options):
        root = make_bundle(batch_sizes=batch_sizes, **options)
        pipeline, manifest = load(root), json.loads((root / "bundle.json").read_text())
        for height, width in pipeline.bundle.sizes:
            is_default = (height, width) == pipeline.bundle.sizes[0]
            name = "golden.png" if is_default else golden_image("golden.png", height, width)
            save_png(pipeline("a cat", height=height, width=width).images[0], root / name)
            data = (root / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        (root / "bundle.json").write_text(json.dumps(manifest))
        return root

    return make


@pytest.fixture(scope="session")
def serve_bundle(make_serve_bundle):
    """Batches of 1, 2 and 4; no test changes it."""
    return make_serve_bundle((1, 2, 4))


@pytest.fixture(scope="session")
def bare(serve_bundle):
    """The engine without a server, to compare with."""
    return load(serve_bundle)


@pytest.fixture(scope="session")
def sized(make_serve_bundle):
    """An engine for pictures of 64x64, and of 64x96 (height x width)."""
    return load(make_serve_bundle((1, 2), sizes=((64, 64), (64, 96))))


@pytest.fixture
def gated(serve_bundle):
    """(pipeline, gate): an engine that can be held back in its denoiser."""
    pipeline = load(serve_bundle)
    return pipeline, Gate(pipeline)


@pytest.fixture(scope="session")
def client(bare):
    with client_of(bare) as client:
        yield client


@pytest.fixture(scope="session")
def server(bare):
    """The address of a server that no test changes."""
    with listening(bare) as url:
        yield url
