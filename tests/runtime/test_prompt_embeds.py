"""Prompt embeddings in place of prompts: the same pictures, and what else is refused."""

import numpy as np
import pytest

from sdturbo import Bundle, InvalidRequest, Pipeline, request

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.arange(64 * 64).reshape(64, 64) % 64 < 32


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return Bundle.load(make_bundle((1, 2)))


@pytest.fixture(scope="module", params=[("null", "cpu"), ("null", "null"), ("onnxruntime", "cpu")], ids="-".join)
def pipe(bundle, request):
    return Pipeline.load(bundle.path, request.param[0], device=request.param[1])


def test_embeddings_are_one_per_prompt_whatever_the_batch(pipe):
    prompts = ["a cat", "a dog", "a cat", ""]
    embeds = pipe.encode_prompt(prompts)
    assert (embeds.dtype, embeds.shape) == (np.float32, (4, 77, 8))
    assert np.array_equal(embeds, np.concatenate([pipe.encode_prompt(prompt) for prompt in prompts]))
    assert np.array_equal(embeds[0], embeds[2])
    assert not np.array_equal(embeds[0], embeds[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_images_per_prompt": 3, "num_inference_steps": 4},
        {"output_type": "latent", "seed": [3, 3]},
        {"image": PICTURE, "num_inference_steps": 2},
        {"image": PICTURE, "mask_image": MASK, "num_inference_steps": 2},
    ],
)
def test_a_call_with_embeddings_draws_what_it_draws_with_the_prompts(pipe, options):
    prompts = ["a cat", "a dog"]
    asked = {"output_type": "np", "seed": 5, **options}
    drawn = pipe(prompt_embeds=pipe.encode_prompt(prompts), **asked)
    expected = pipe(prompts, **asked)
    assert np.array_equal(drawn.images, expected.images)
    assert (drawn.seeds, drawn.strength) == (expected.seeds, expected.strength)
    assert "text_encoder" not in drawn.timings
    (streamed,) = pipe.stream([{"prompt_embeds": pipe.encode_prompt(prompts), **asked}])
    assert np.array_equal(streamed.images, expected.images)


def test_results_of_embeddings_claim_no_prompt(pipe):
    drawn = pipe(prompt_embeds=pipe.encode_prompt(["a cat " * 50, "a dog"]), seed=4)
    assert drawn.dropped == ["", ""]
    assert pipe.dropped_text(["a cat " * 50, "a dog"]) == pipe(["a cat " * 50, "a dog"]).dropped != ["", ""]
    assert drawn.images[1].info["parameters"].startswith("\nSteps: 1, ")
    assert "Seed: 5," in drawn.images[1].info["parameters"]


def test_changing_embeddings_changes_neither_the_cache_nor_later_calls(pipe):
    before = pipe("a cat", output_type="np").images
    pipe.encode_prompt("a cat")[:] = 7
    assert np.array_equal(pipe("a cat", output_type="np").images, before)


@pytest.mark.parametrize(
    ("embeds", "words"),
    [
        (
            np.zeros((77, 8), np.float32),
            r"prompt_embeds float32 \(77, 8\), expected float32 \(N, 77, 8\) for N prompts",
        ),
        (np.zeros((1, 77, 9), np.float32), r"float32 \(1, 77, 9\)"),
        (np.zeros((1, 76, 8), np.float32), r"float32 \(1, 76, 8\)"),
        (np.zeros((0, 77, 8), np.float32), r"float32 \(0, 77, 8\)"),
        (np.array(1, np.float32), r"float32 \(\)"),
        (np.zeros((1, 77, 8)), r"float64 \(1, 77, 8\)"),
        (np.zeros((1, 77, 8), np.float16), r"float16"),
        (np.full((1, 77, 8), np.nan, np.float32), "616 values of 616 not finite"),
        (np.array([[[np.inf] + [0] * 7] + [[0] * 8] * 76], np.float32), "1 values of 616 not finite"),
        ([[0.0]], "of type list"),
        ("a cat", "of type str"),
    ],
)
def test_other_embeddings_are_refused(pipe, embeds, words):
    with pytest.raises(InvalidRequest, match=words):
        pipe(prompt_embeds=embeds)


def test_a_prompt_or_its_embeddings_are_given_and_not_both(pipe):
    embeds = pipe.encode_prompt("a cat")
    for asked, words in (
        ({}, "without a prompt, expected text or a list of it, or prompt_embeds"),
        ({"prompt": None, "prompt_embeds": None}, "without a prompt"),
        ({"prompt": "a cat", "prompt_embeds": embeds}, "both prompt and prompt_embeds"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            pipe(**asked)
        with pytest.raises(InvalidRequest, match=words):
            request.accept(pipe.bundle, asked)


@pytest.mark.parametrize("prompt", [None, 7, [], ["a", 7], "\ud800"])
def test_only_text_is_encoded(pipe, prompt):
    with pytest.raises(InvalidRequest, match=r"expected text|not valid Unicode"):
        pipe.encode_prompt(prompt)


def test_the_embedded_model_draws_the_same_from_embeddings():
    pipe = Pipeline.load(backend="onnxruntime")
    drawn = pipe(prompt_embeds=pipe.encode_prompt("a red cat in the snow"), seed=3, output_type="np")
    assert drawn.images.tobytes() == pipe("a red cat in the snow", seed=3, output_type="np").images.tobytes()
