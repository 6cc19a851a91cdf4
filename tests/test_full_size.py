"""The full-size model, from its seeded checkpoint to pictures: `make test-full`. Needs 16 GB of disk and 16 GB of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdturbo.bundle import Bundle

pytestmark = pytest.mark.full

BUILD = Path(__file__).parent.parent / "build"
# bytes of the float32 weights in SD-Turbo's own layout
SIZES = {
    "text_encoder/model.safetensors": 1_361_596_304,
    "unet/diffusion_pytorch_model.safetensors": 3_463_726_504,
    "vae/diffusion_pytorch_model.safetensors": 334_643_268,
}


def command(*arguments):
    """Run `sdturbo-export` with its output shown (pytest -s), as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "sdturbo_export", *arguments], cwd=BUILD.parent, check=False
    ).returncode


@pytest.fixture(scope="module")
def bundle():
    assert command("build", "--model", "seeded", "--out", "build/seeded") == 0
    return Bundle.load(BUILD / "seeded")


def test_checkpoint_has_the_sizes_of_the_hubs_files(bundle):
    checkpoint = BUILD / "checkpoints" / "seeded-0"
    assert {name: (checkpoint / name).stat().st_size for name in SIZES} == SIZES


def test_every_stage_is_within_the_bound(bundle):
    assert len(bundle.parity) == 4
    assert all(line["relative_l2"] <= 1e-4 for line in bundle.parity.values())


def test_verify_against_pytorch_and_diffusers(bundle):
    assert command("verify", "build/seeded", "--model", "seeded") == 0
