"""Blends of prompts and seeds: exact at the ends, unit variance between, and walks from one picture to another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdturbo import Cancelled, InvalidRequest, Pipeline, blend
from sdturbo.noise import randn

SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)
NOISE_SHAPE = (1, 4, 64, 64)
RNG = np.random.default_rng(0)
EMBEDS = RNG.standard_normal((2, 77, 8), np.float32)


class SetAfter:
    """A token that is set from its n-th look on."""

    def __init__(self, looks):
        self.left = looks

    def is_set(self):
        self.left -= 1
        return self.left < 0


def noises(*seeds):
    return [randn([seed], NOISE_SHAPE)[0] for seed in seeds]


@given(first=SEEDS, last=SEEDS)
def test_slerp_is_bit_equal_to_its_ends(first, last):
    for start, end in (noises(first, last), (EMBEDS[:1], EMBEDS[1:])):
        assert blend.slerp(start, end, 0).tobytes() == start.tobytes()
        assert blend.slerp(start, end, 1).tobytes() == end.tobytes()


@given(first=SEEDS, last=SEEDS, t=SHARES)
def test_noise_between_two_seeds_keeps_unit_variance(first, last, t):
    start, end = noises(first, last)
    between = blend.slerp(start, end, t)
    assert between.dtype == np.float32
    lowest, highest = sorted((np.sqrt(np.mean(start**2)), np.sqrt(np.mean(end**2))))
    assert lowest - 1e-5 <= np.sqrt(np.mean(between**2)) <= highest + 1e-5
    assert abs(np.var(between) - 1) < 0.06  # five standard deviations of the variance of 16384 normals


def test_a_mean_of_noise_would_lose_variance():
    start, end = noises(1, 2)
    assert np.var((start + end) / 2) < 0.55
    assert np.var(blend.slerp(start, end, 0.5)) > 0.94


@given(t=st.floats(0.01, 0.99))
def test_slerp_is_shoemakes_formula_for_vectors_of_one_length(t):
    angle = 1.1
    start = np.zeros((1, 4, 2, 2), np.float32)
    end = start.copy()
    start[0, 0, 0, 0] = 3
    end[0, 0, 0, :] = 3 * np.cos(angle), 3 * np.sin(angle)
    expected = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
    assert np.allclose(blend.slerp(start, end, t), expected, atol=1e-6)


def test_images_and_tokens_are_vectors_of_their_own():
    start, end = RNG.standard_normal((2, 3, 4, 8, 8), np.float32)
    alone = [blend.slerp(start[i : i + 1], end[i : i + 1], 0.3) for i in range(3)]
    assert np.array_equal(blend.slerp(start, end, 0.3), np.concatenate(alone))
    alone = [blend.slerp(EMBEDS[:1, i : i + 1], EMBEDS[1:, i : i + 1], 0.3) for i in range(77)]
    assert np.array_equal(blend.slerp(EMBEDS[:1], EMBEDS[1:], 0.3), np.concatenate(alone, axis=1))


@given(t=SHARES)
def test_tokens_that_both_prompts_share_stay_as_they_are(t):
    end = EMBEDS[1:].copy()
    end[:, :5] = EMBEDS[:1, :5]
    end[:, 5] = 0
    assert np.array_equal(blend.slerp(EMBEDS[:1], end, t)[:, :5], EMBEDS[:1, :5])
    assert np.isfinite(blend.slerp(EMBEDS[:1], end, t)).all()


def test_lengths_change_evenly():
    start, end = np.zeros((2, 1, 4, 4, 4), np.float32)
    start[0, 0, 0, 0], end[0, 1, 0, 0] = 1, 3
    lengths = [np.linalg.norm(blend.slerp(start, end, t)) for t in (0.25, 0.5, 0.75)]
    assert np.allclose(lengths, [1.5, 2, 2.5])


def test_opposites_have_no_shortest_arc():
    (noise,) = noises(1)
    with pytest.raises(InvalidRequest, match="opposites"):
        blend.slerp(noise, -noise, 0.5)


@pytest.mark.parametrize(
    ("start", "end", "t", "words"),
    [
        (EMBEDS, EMBEDS[:1], 0.5, r"\(2, 77, 8\) and end of shape \(1, 77, 8\)"),
        (EMBEDS, EMBEDS.astype(np.float64), 0.5, "Got end float64"),
        (EMBEDS[0], EMBEDS[0], 0.5, r"Got start float32 \(77, 8\), expected prompt embeddings .* or noise"),
        (EMBEDS[:0], EMBEDS[:0], 0.5, r"Got start float32 \(0, 77, 8\)"),
        (EMBEDS, EMBEDS[None], 0.5, r"Got end float32 \(1, 2, 77, 8\), expected prompt embeddings"),
        (EMBEDS * np.float32(np.nan), EMBEDS, 0.5, "start with values that are not finite"),
        ("a cat", EMBEDS, 0.5, "Got start of type str"),
        *((EMBEDS, EMBEDS, t, "expected a number from 0 to 1") for t in (-0.1, 1.1, np.nan, None, "0.5", True, [0.5])),
    ],
)
def test_what_has_no_arc_is_refused(start, end, t, words):
    with pytest.raises(InvalidRequest, match=words):
        blend.slerp(start, end, t)


def test_mix_is_the_weighted_mean():
    assert blend.mix(EMBEDS, [1, 0]).tobytes() == EMBEDS[:1].tobytes()
    assert blend.mix(EMBEDS, (0, 7.5)).tobytes() == EMBEDS[1:].tobytes()
    mean = (EMBEDS[:1] + 3 * EMBEDS[1:]) / 4
    for weights in ([1, 3], np.array([0.25, 0.75]), [-1, -3]):
        mixed = blend.mix(EMBEDS, weights)
        assert (mixed.dtype, mixed.shape) == (np.float32, (1, 77, 8))
        assert np.allclose(mixed, mean, atol=1e-6)
    assert np.allclose(blend.mix(EMBEDS, [2, -1]), 2 * EMBEDS[:1] - EMBEDS[1:], atol=1e-6)


@pytest.mark.parametrize(
    ("embeds", "weights", "words"),
    [
        (EMBEDS, [1, -1], "with the sum 0, expected finite numbers whose sum is not zero"),
        (EMBEDS, [0, 0], "sum is not zero"),
        (EMBEDS, [0.1 + 0.2, -0.3], "sum is not zero"),  # 5e-17: what rounding leaves
        (EMBEDS * np.float32(1e35), [1e5, 1 - 1e5], "lead too far"),
        (EMBEDS, [np.nan, 1], "sum is not zero"),
        (EMBEDS, [np.inf, 1], "sum is not zero"),
        (EMBEDS, [1e308, 1e308], "sum is not zero"),
        (EMBEDS, [1], r"weights of shape \(1,\) for 2 prompts"),
        (EMBEDS, 1, r"weights of shape \(\) for 2 prompts"),
        (EMBEDS, ["much", "little"], "expected a list of numbers"),
        (EMBEDS, [[1], [1, 2]], "expected a list of numbers"),
        (EMBEDS[0], [1] * 77, "Got embeds float32"),
        (EMBEDS.astype(np.float16), [1, 1], "Got embeds float16"),
        (None, [1], "Got embeds of type NoneType"),
    ],
)
def test_other_weights_and_embeddings_are_refused(embeds, weights, words):
    with pytest.raises(InvalidRequest, match=words):
        blend.mix(embeds, weights)


@pytest.fixture(scope="module", params=["cpu", "null"])
def pipe(make_bundle, request):
    return Pipeline.load(make_bundle((1, 2)), "null", device=request.param)


def test_a_walk_begins_and_ends_with_the_plain_calls(pipe):
    asked = {"num_inference_steps": 2, "output_type": "np"}
    frames = list(blend.walk(pipe, ("a cat", 1), ("a dog", 2), 5, **asked))
    assert len(frames) == 5
    for frame, (prompt, seed) in ((frames[0], ("a cat", 1)), (frames[-1], ("a dog", 2))):
        assert np.array_equal(frame.images, pipe(prompt, seed=seed, **asked).images)
        assert frame.seeds == [seed]
    assert len({frame.images.tobytes() for frame in frames}) == 5
    assert [frame.seeds for frame in frames[1:-1]] == [[]] * 3


def test_frames_between_are_the_calls_with_interpolated_embeddings_and_noise(pipe):
    frames = list(blend.walk(pipe, ("a cat", 1), ("a dog", 2), 3, output_type="np"))
    noise = [randn([seed], (1, 4, 8, 8))[0] for seed in (1, 2)]
    embeds = [pipe.encode_prompt(prompt) for prompt in ("a cat", "a dog")]
    middle = {"prompt_embeds": blend.slerp(*embeds, 0.5), "latents": blend.slerp(*noise, 0.5)}
    assert np.array_equal(frames[1].images, pipe(**middle, output_type="np").images)


def test_an_end_in_place_of_interpolation_draws_the_plain_call(pipe):
    """The interpolated inputs at t = 0 and 1 are those of the plain calls."""
    noise = [randn([seed], (1, 4, 8, 8))[0] for seed in (1, 2)]
    embeds = [pipe.encode_prompt(prompt) for prompt in ("a cat", "a dog")]
    for t, prompt, seed in ((0, "a cat", 1), (1, "a dog", 2)):
        drawn = pipe(prompt_embeds=blend.slerp(*embeds, t), latents=blend.slerp(*noise, t), output_type="np")
        assert np.array_equal(drawn.images, pipe(prompt, seed=seed, output_type="np").images)


def test_a_walk_between_equal_ends_stands_still(pipe):
    frames = list(blend.walk(pipe, ("a cat", 1), ("a cat", 1 + 2**32), 4, output_type="np"))
    assert len({frame.images.tobytes() for frame in frames}) == 1


def test_a_walk_stops_when_it_is_cancelled(pipe):
    stop = SetAfter(10**6)
    frames = blend.walk(pipe, ("a cat", 1), ("a dog", 2), 4, cancel=stop)
    next(frames)
    stop.left = 0
    with pytest.raises(Cancelled):
        next(frames)


@pytest.mark.parametrize(
    ("start", "end", "frames", "options", "words"),
    [
        (("a cat", 1), ("a dog", 2), 1, {}, "Got frames=1, expected a whole number from 2"),
        (("a cat", 1), ("a dog", 2), 2.5, {}, "Got frames=2.5"),
        (("a cat", 1), ("a dog", 2), True, {}, "Got frames=True"),
        ("a cat", ("a dog", 2), 3, {}, r"Got start='a cat', expected \(prompt, seed\)"),
        (("a cat", 1), ("a dog",), 3, {}, r"Got end=\('a dog',\), expected \(prompt, seed\)"),
        ((["a cat"], 1), ("a dog", 2), 3, {}, r"Got the prompt \['a cat'\] in start, expected one text"),
        (("a cat", -1), ("a dog", 2), 3, {}, "Got seed -1"),
        (("a cat", [1, 2]), ("a dog", 2), 3, {}, "2 seeds for 1 images"),
        (("a cat", 1), ("a dog", 2), 3, {"image": "x.png"}, "Got image for a walk, which takes num_inference_steps"),
        (("a cat", 1), ("a dog", 2), 3, {"seed": 1}, "Got seed for a walk"),
    ],
)
def test_other_walks_are_refused_before_the_first_frame(pipe, start, end, frames, options, words):
    with pytest.raises(InvalidRequest, match=words):
        blend.walk(pipe, start, end, frames, **options)


def test_a_seed_of_none_is_drawn_once(pipe):
    first, last = blend.walk(pipe, ("a cat", None), ("a dog", None), 2)
    assert first.seeds != last.seeds


def test_the_embedded_model_walks():
    tiny = Pipeline.load(backend="onnxruntime")
    asked = {"output_type": "np"}
    first, between, last = blend.walk(tiny, ("a red cat", 1), ("a blue boat", 2), 3, **asked)
    assert np.array_equal(first.images, tiny("a red cat", seed=1, **asked).images)
    assert np.array_equal(last.images, tiny("a blue boat", seed=2, **asked).images)
    assert between.images.std() > 10
