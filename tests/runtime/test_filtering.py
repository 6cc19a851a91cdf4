"""A caller's own filter of prompts and pictures in Python: what it refuses, and that it fails closed."""

import asyncio

import numpy as np
import pytest

from sdturbo import FilterFailed, InvalidRequest, Pipeline, Refused, Result, SDTurboError, blend
from sdturbo.errors import OutputError


class Words:
    """Refuses by a word of the prompt, and pictures that `dark` says."""

    def __init__(self):
        self.prompts, self.pictures, self.refused = [], [], ()

    def check_prompt(self, prompt):
        self.prompts.append(prompt)
        if "broken" in prompt:
            raise ZeroDivisionError
        return "no blood" if "blood" in prompt else None

    def check_picture(self, picture):
        self.pictures.append(np.asarray(picture))
        return "too dark" if len(self.pictures) in self.refused else None


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def pipe(bundle_dir, words):
    return Pipeline.load(bundle_dir, "null", filter=words)


def test_a_refused_prompt_is_a_typed_error_with_the_filters_reason(pipe, words):
    with pytest.raises(Refused, match="The filter refused this request: no blood") as refused:
        pipe(["a fox", "blood"])
    assert refused.value.reason == "no blood"
    assert isinstance(refused.value, SDTurboError)
    assert words.pictures == []  # nothing was drawn


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_the_filter_sees_what_the_caller_would_get(pipe, words, output_type):
    result = pipe(["a fox", "a cat"], num_images_per_prompt=2, output_type=output_type)
    assert words.prompts == ["a fox", "a cat"]
    assert np.array_equal(words.pictures, [np.asarray(image) for image in result.images])
    assert result.timings["filter"] >= 0


def test_a_refused_picture_is_not_given(pipe, words):
    words.refused = (2,)
    with pytest.raises(Refused, match="too dark"):
        pipe("a fox", num_images_per_prompt=3)


def test_a_filter_that_lets_pass_changes_no_picture(pipe, bundle_dir):
    plain = Pipeline.load(bundle_dir, "null")("a fox", seed=7, output_type="np")
    drawn = pipe("a fox", seed=7, output_type="np")
    assert np.array_equal(drawn.images, plain.images)
    assert "filter" not in plain.timings


def test_a_filter_that_fails_refuses(pipe, words):
    with pytest.raises(FilterFailed, match="The filter's check_prompt raised ZeroDivisionError") as failed:
        pipe("broken")
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    for verdict in (True, False, 0, b"reason", ["reason"]):
        words.check_picture = lambda _, verdict=verdict: verdict
        with pytest.raises(FilterFailed, match=f"check_picture returned a {type(verdict).__name__}"):
            pipe("a fox")


@pytest.mark.parametrize("raised", [asyncio.CancelledError, SystemExit, GeneratorExit])
def test_exceptions_of_every_kind_refuse(pipe, words, raised):
    def check_prompt(prompt):
        raise raised

    words.check_prompt = check_prompt
    with pytest.raises(FilterFailed, match=f"check_prompt raised {raised.__name__}"):
        pipe("a fox")


def test_the_users_interrupt_ends_a_call_in_its_filter(pipe, words):
    def check_prompt(prompt):
        raise KeyboardInterrupt

    words.check_prompt = check_prompt
    with pytest.raises(KeyboardInterrupt):
        pipe("a fox")


def test_a_stream_goes_on_after_a_refusal(pipe, words):
    words.refused = (2,)
    prompts = ["a fox", "a cat", "blood", "broken", "a dog"]
    outcomes = list(pipe.stream({"prompt": prompt} for prompt in prompts))
    assert [type(outcome) for outcome in outcomes] == [Result, Refused, Refused, FilterFailed, Result]


def test_embeddings_come_from_prompts_that_passed(pipe, words):
    with pytest.raises(Refused, match="no blood"):
        pipe.encode_prompt("blood")
    with pytest.raises(Refused, match="no blood"):
        list(blend.walk(pipe, ("a fox", 1), ("blood", 2), 3))
    embeds = pipe.encode_prompt("a fox")
    words.prompts.clear()
    pipe(prompt_embeds=embeds)
    assert words.prompts == []
    assert len(words.pictures) > 0


def test_latents_which_the_filter_cannot_see_are_refused(pipe):
    with pytest.raises(InvalidRequest, match="Got output_type='latent', but the pipeline's filter sees pictures"):
        pipe("a fox", output_type="latent")


class Half:
    def check_prompt(self, prompt): ...


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (Half(), "of type Half without check_picture"),
        (len, "without check_prompt and check_picture"),
        (Words, "of type type in place of an instance of it"),
    ],
)
def test_an_object_that_is_no_filter_is_refused_at_load(bundle_dir, candidate, said):
    for backend in ("null", "auto"):
        with pytest.raises(InvalidRequest, match=said):
            Pipeline.load(bundle_dir, backend, filter=candidate)


def test_a_picture_that_is_none_is_no_business_of_the_filter(pipe, words, monkeypatch):
    def fail(*_):
        raise OutputError("constant")

    monkeypatch.setattr("sdturbo.pipeline.require_pictures", fail)
    with pytest.raises(OutputError):
        pipe("a fox")
    assert words.pictures == []
