"""Pictures of other sizes than 512x512: static graphs of each, held to the same bounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdturbo import Bundle, InvalidRequest, Pipeline
from sdturbo.bundle.description import parse_size
from sdturbo.golden import golden_distance
from sdturbo_export.build import build
from sdturbo_export.options import BuildOptions, check_size
from sdturbo_export.verify import compare_with_diffusers

SIZES = ((256, 320), (384, 256))  # height, width. Small ones, for time
LARGE = ((512, 768), (576, 320))
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def sized(small_checkpoint, store, tmp_path_factory):
    return build(small_checkpoint, tmp_path_factory.mktemp("sized") / "b", BuildOptions(sizes=SIZES), store=store)


@pytest.fixture(scope="module")
def pipes(sized):
    return {name: Pipeline.load(sized.path, name, precision="fp32") for name in BACKENDS}


def test_pictures_of_every_size_are_those_of_diffusers(sized, small_checkpoint):
    lines = list(compare_with_diffusers(sized, small_checkpoint))
    assert [line for line in lines if not line["ok"]] == []
    for width_by_height in ("320x256", "256x384"):
        assert sum(width_by_height in line["what"] for line in lines) >= 3 * len(BACKENDS)


@pytest.mark.full
def test_large_pictures_are_those_of_diffusers_too(small_checkpoint, store, tmp_path):
    bundle = build(small_checkpoint, tmp_path / "large", BuildOptions(sizes=LARGE), store=store)
    lines = list(compare_with_diffusers(bundle, small_checkpoint))
    assert [line for line in lines if not line["ok"]] == []


def test_one_file_of_weights_per_stage_and_one_text_encoder_serve_all_sizes(sized, small_bundle):
    def weights(bundle):
        return sum(file.stat().st_size for file in (bundle.path / "onnx").glob("*.weights"))

    assert weights(sized) < 1.05 * weights(small_bundle)
    assert len(sized.declared["text_encoder"].graphs) == 1
    assert {name.height for name in sized.declared["decoder"].graphs} == {256, 384}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_golden_picture_of_every_size_is_drawn_again(sized, pipes, backend):
    files = [sized.path / name for name in ("golden.png", "golden.256x384.png")]
    assert [Image.open(file).size for file in files] == [(320, 256), (256, 384)]
    assert golden_distance(pipes[backend]) > 40


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_noise_has_the_size_of_the_latents(pipes, backend, height, width):
    pipe = pipes[backend]
    noise = torch.randn((1, 4, height // 8, width // 8), generator=torch.Generator().manual_seed(3)).numpy()
    drawn = pipe("a fox", height=height, width=width, seed=3, output_type="np").images
    given = pipe("a fox", height=height, width=width, latents=noise, output_type="np").images
    assert drawn.shape == (1, height, width, 3)
    assert np.array_equal(drawn, given)


def test_the_first_size_is_the_default(pipes):
    assert pipes["onnxruntime"]("a fox", output_type="np").images.shape == (1, 256, 320, 3)


def test_a_size_that_the_bundle_lacks_is_refused_with_those_it_has(pipes):
    with pytest.raises(
        InvalidRequest, match=r"the size 512x512 \(width x height\)\. This bundle draws 320x256, 256x384"
    ):
        pipes["onnxruntime"]("a fox", height=512, width=512)
    with pytest.raises(InvalidRequest, match="height='512'"):
        pipes["onnxruntime"]("a fox", height="512")


@pytest.mark.parametrize("size", [(512, 500), (192, 512), (512, 1088), (1024, 1024), (0, 512), (-64, 512)])
def test_sizes_that_sd_turbo_does_not_draw_are_refused(size):
    with pytest.raises(InvalidRequest, match="Expected multiples of 64 from 256 to 1024, and at most 589824 pixels"):
        BuildOptions(sizes=[size])


@pytest.mark.parametrize("size", [(256, 256), (768, 768), (1024, 576), (576, 1024)])
def test_sizes_up_to_the_limits_are_taken(size):
    check_size(*size)


def test_a_size_is_width_x_height():
    assert parse_size("768x512") == (512, 768)
    for text in ("768", "768x", "x512", "768×512", "-64x512", "1e3x512", "768x512x3"):
        with pytest.raises(InvalidRequest, match="Expected width x height in pixels"):
            parse_size(text)


def test_a_bundle_with_another_default_opens_again(sized):
    assert Bundle.load(sized.path).sizes == SIZES
