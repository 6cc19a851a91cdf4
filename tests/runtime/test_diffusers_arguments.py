"""What callers pass because diffusers takes it: translated where it means something here, else refused with the reason."""

import numpy as np
import pytest
import torch

from sdturbo import InvalidRequest, Pipeline


@pytest.fixture(scope="module")
def pipe(bundle_dir):
    return Pipeline.load(bundle_dir, "null")


@pytest.mark.parametrize(
    "harmless",
    [
        {"guidance_scale": 0.0},
        {"guidance_scale": 0},
        {"negative_prompt": None, "callback_on_step_end": None, "generator": None},
        {"negative_prompt": ""},
        {"height": 64, "width": 64},
        {"height": None, "width": 64},
    ],
)
def test_what_changes_nothing_is_taken(pipe, harmless):
    assert pipe("a cat", **harmless).images == pipe("a cat").images
    (streamed,) = pipe.stream([{"prompt": "a cat", **harmless}])
    assert streamed.images == pipe("a cat").images


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guidance_scale": 7.5}, r"Got guidance_scale=7\.5\. SD-Turbo was trained without guidance"),
        ({"guidance_scale": "0"}, r"Got guidance_scale='0'"),
        ({"negative_prompt": "blurry"}, r"Got negative_prompt='blurry'\. It works through guidance"),
        ({"negative_prompt": ["blurry"]}, "Got negative_prompt="),
        ({"callback_on_step_end": print}, "Got callback_on_step_end=.*`cancel` stops a call"),
        ({"height": 512}, r"Got the size 64x512 \(width x height\)\. This bundle draws 64x64"),
        ({"height": 64, "width": 96}, "Got the size 96x64"),
        ({"width": "64"}, "Got width='64' of type str"),
        ({"height": np.array([64, 64])}, "Got height=array"),
        ({"guidance_scale": np.zeros(2)}, "Got guidance_scale=array"),
        ({"clip_skip": 2}, r"Got a request with \['clip_skip'\], expected names of prompt"),
        ({"generator": 7}, "Got generator of type int, expected a torch.Generator, or seed="),
        ({"generator": [torch.Generator(), "x"]}, r"Got generator\[1\] of type str"),
    ],
)
def test_what_diffusers_would_have_honoured_is_refused_with_the_reason(pipe, given, words):
    with pytest.raises(InvalidRequest, match=words):
        pipe("a cat", **given)
    (streamed,) = pipe.stream([{"prompt": "a cat", **given}])
    assert isinstance(streamed, InvalidRequest)


def test_a_fresh_generator_is_its_seed(pipe):
    drawn = pipe("a cat", generator=torch.Generator().manual_seed(7))
    assert drawn.seeds == [7]
    assert drawn.images == pipe("a cat", seed=7).images
    several = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 2**64 - 1)]
    assert pipe("a cat", num_images_per_prompt=2, generator=several).seeds == [3, 2**64 - 1]


def test_a_generator_that_draws_something_else_than_its_seed_is_refused(pipe):
    used = torch.Generator().manual_seed(7)
    torch.randn(4, generator=used)
    with pytest.raises(InvalidRequest, match="has drawn already"):
        pipe("a cat", generator=used)
    with pytest.raises(InvalidRequest, match="1 seeds for 2 images"):  # diffusers draws on in one generator
        pipe("a cat", num_images_per_prompt=2, generator=torch.Generator())
    for seed in (1, [0], np.arange(2)):
        with pytest.raises(InvalidRequest, match="both seed and generator"):
            pipe("a cat", seed=seed, generator=torch.Generator())

    class OnGpu(torch.Generator):
        # a GPU's state has another length
        device = "cuda:0"

        def get_state(self):
            return torch.zeros(16, dtype=torch.uint8)

    with pytest.raises(InvalidRequest, match=r"Got generator on cuda:0"):
        pipe("a cat", generator=OnGpu())
