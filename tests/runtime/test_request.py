import inspect
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdturbo import Bundle, Pipeline, request
from sdturbo.errors import InvalidRequest

STEPS = st.integers(1, 4)


def diffusers_steps(num_inference_steps, strength):
    """StableDiffusionImg2ImgPipeline.get_timesteps: the steps of the schedule that run."""
    init_timestep = min(int(num_inference_steps * strength), num_inference_steps)
    return list(range(num_inference_steps))[max(num_inference_steps - init_timestep, 0) :]


@given(steps=STEPS, strength=st.floats(0, 1) | st.integers(0, 100).map(lambda k: k / 100))
@example(steps=3, strength=0.33)
@example(steps=3, strength=1 / 3)
@example(steps=1, strength=1 / 3)
@example(steps=2, strength=0.49999999)
@example(steps=4, strength=5e-324)
def test_steps_are_those_of_diffusers_or_an_error_proposing_values_that_work(steps, strength):
    expected = diffusers_steps(steps, strength)
    if expected:
        assert request.first_step(steps, strength) == expected[0]
        return
    with pytest.raises(InvalidRequest) as error:
        request.first_step(steps, strength)
    advice = str(error.value).split(" Use ")[1].rstrip(".")
    pairs = [option.split(" with ") for option in advice.split(" or ")]
    values = [{re.split(" >= |=", part)[0]: float(re.split(" >= |=", part)[1]) for part in pair} for pair in pairs]
    for value in values:
        assert diffusers_steps(int(value["num_inference_steps"]), value["strength"])
    assert str(strength) in str(error.value)


@given(steps=STEPS)
def test_the_default_strength_runs_a_step(steps):
    assert diffusers_steps(steps, request.check_strength(None, steps))


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.array(0.5), Fraction(1, 2), Decimal("0.5")])
def test_numbers_from_0_to_1_are_strengths(value):
    assert request.check_strength(value, 2) == float(value)


@pytest.mark.parametrize(
    "value", [-0.01, 1.01, float("nan"), float("inf"), 10**400, True, "0.5", b"1", [0.5], {}, np.array([0.5, 0.5]), 1j]
)
def test_other_strengths_are_refused(value):
    with pytest.raises(InvalidRequest, match=r"strength=.*expected a number from 0 to 1"):
        request.check_strength(value, 2)


@given(seed=st.integers(0, 2**64 - 9), count=st.integers(1, 8))
def test_image_i_takes_seed_plus_i(seed, count):
    assert request.check_seeds(seed, count) == list(range(seed, seed + count))


@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_a_list_of_seeds_is_taken_as_it_is(seeds):
    assert request.check_seeds(seeds, len(seeds)) == seeds
    assert request.check_seeds(tuple(np.array(seeds, np.uint64)), len(seeds)) == seeds
    for count in (len(seeds) - 1, len(seeds) + 1):
        with pytest.raises(InvalidRequest, match=f"{len(seeds)} seeds for {count} images"):
            request.check_seeds(seeds, count)


def test_ranges_and_arrays_are_sequences_of_seeds():
    assert request.check_seeds(range(4, 7), 3) == [4, 5, 6]
    assert request.check_seeds(np.arange(3, dtype=np.uint8), 3) == [0, 1, 2]
    for four in (range(4), np.arange(4), range(7, -1, -2)):
        with pytest.raises(InvalidRequest, match="4 seeds for 3 images"):
            request.check_seeds(four, 3)
    for many in (range(10**30), range(5, 5)):  # refused at once
        with pytest.raises(InvalidRequest, match=f"{10**30 if many else 0} seeds for 3 images"):
            request.check_seeds(many, 3)


def test_no_seed_draws_one_that_the_result_tells(pipe):
    drawn = pipe("a cat", seed=None, num_images_per_prompt=2)
    assert drawn.seeds[1] == drawn.seeds[0] + 1
    assert pipe("a cat", seed=drawn.seeds, num_images_per_prompt=2).images == drawn.images
    assert len({pipe("a cat", seed=None).seeds[0] for _ in range(4)}) == 4


def test_seeds_are_python_integers_whatever_came():
    assert [type(value) for value in request.check_seeds(np.int8(7), 2)] == [int, int]


@pytest.mark.parametrize(
    ("seed", "count"),
    [(-1, 1), (2**64, 1), (2**64 - 1, 2), (2**64 - 3, 4), ([0, -1], 2), ([2**64], 1), (10**400, 1)],
)
def test_seeds_outside_torchs_range_are_refused(seed, count):
    with pytest.raises(InvalidRequest, match=r"0 to 2\*\*64 - 1"):
        request.check_seeds(seed, count)


@pytest.mark.parametrize(
    "value", [True, np.True_, 1.0, "1", b"1", None, {1}, 1j, [1], np.float32(1), np.array([1, 2]), np.array(1.5)]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(InvalidRequest, match="expected a whole number"):
        request.check_seeds([value], 1)
    with pytest.raises(InvalidRequest, match="expected a whole number"):
        request.check_count(value, "num_inference_steps", 4)


@pytest.mark.parametrize("value", [0, -1, 5, 2**70])
def test_counts_out_of_range_are_refused(value):
    with pytest.raises(InvalidRequest, match=f"num_inference_steps={value}, expected 1 to 4"):
        request.check_count(value, "num_inference_steps", 4)


def test_counts_in_range_are_taken():
    assert [request.check_count(value, "n", 4) for value in (1, 4, np.int64(2))] == [1, 4, 2]
    assert request.check_count(1000, "n") == 1000


def test_text_and_lists_of_text_are_prompts():
    for prompt in ("a", ""):
        assert request.check_prompts(prompt) == [prompt]
    for prompts in (["a", ""], ("a", "b")):
        assert request.check_prompts(prompts) == list(prompts)


@pytest.mark.parametrize(
    "prompt", [None, b"a", 1, [], (), {"a"}, {"a": 1}, iter("a"), [1], ["a", None], [b"b"], [["a"]]]
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(InvalidRequest, match="expected text"):
        request.check_prompts(prompt)


@pytest.fixture(scope="module")
def bundle(bundle_dir):
    return Bundle.load(bundle_dir)


@pytest.mark.parametrize("value", [None, "jpeg", "PIL", 1, [], np.array([1, 2])])
def test_unknown_output_types_are_refused(bundle, value):
    with pytest.raises(InvalidRequest, match="expected one of pil, np, latent"):
        request.accept(bundle, {"prompt": "a cat", "output_type": value})


def test_a_request_that_says_nothing_takes_the_defaults_of_a_call(bundle, pipe):
    job = request.accept(bundle, {"prompt": "a cat"})
    signature = inspect.signature(Pipeline.__call__).parameters
    said = {name: signature[name].default for name in request.Request.__annotations__ if name != "prompt"}
    full = request.accept(bundle, {"prompt": "a cat", **said})
    checked = ("prompts", "image", "strength", "num_inference_steps", "rows", "images_per_prompt", "seeds", "latents")
    assert [getattr(job, name) for name in checked] == [getattr(full, name) for name in checked]
    assert (job.output_type, job.clock.cancel) == (full.output_type, full.clock.cancel)
    (streamed,) = pipe.stream([{"prompt": "a cat"}])
    assert streamed.images == pipe("a cat").images


@pytest.mark.parametrize("name", ["seed", "height", "num_inference_steps", "num_images_per_prompt"])
def test_numbers_too_long_to_print_are_refused_in_words(bundle, name):
    with pytest.raises(InvalidRequest, match=f"Got {name} of 16610 bits"):
        request.accept(bundle, {"prompt": "a cat", name: 10**5000})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a cat", "type str, expected a call's arguments by name"),
        (None, "type NoneType"),
        ({}, "without a prompt"),
        ({"seed": 1}, "without a prompt"),
        ({"prompt": "a cat", "clip_skip": 7}, "clip_skip.*expected names of prompt, image, mask_image"),
        ({"prompt": "a cat", 7: 7}, r"with \[7\]"),
        ({"prompt": "a cat", "image_to_image": True}, "image_to_image"),
    ],
)
def test_other_names_than_those_of_a_call_are_refused(bundle, given, words):
    with pytest.raises(InvalidRequest, match=words):
        request.accept(bundle, given)


def test_whether_a_picture_can_be_taken_is_the_pipelines_word_in_calls_and_streams(bundle):
    pipe = Pipeline.load(bundle.path, "null", image_to_image=False)
    given = {"prompt": "a cat", "image": np.zeros((64, 64, 3), np.uint8)}
    assert request.accept(bundle, given).image is given["image"]
    with pytest.raises(InvalidRequest, match="image_to_image=False"):
        pipe(**given)
    (refused,) = pipe.stream([given])
    assert isinstance(refused, InvalidRequest)
    assert "image_to_image=False" in str(refused)
