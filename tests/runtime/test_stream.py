"""A stream of requests: order, equality with plain calls, errors in their place, cancellation, and threads that end."""

import itertools
import threading
import types

import numpy as np
import pytest

from sdturbo import BackendUnavailable, Bundle, Cancelled, InvalidRequest, Pipeline, SDTurboError, pipelined


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return Bundle.load(make_bundle((1, 2)))


BACKENDS = [("null", "cpu"), ("null", "null"), ("onnxruntime", "cpu"), ("openvino", "cpu")]


@pytest.fixture(scope="module", params=BACKENDS[:2], ids="-".join)
def pipe(bundle, request):
    return Pipeline.load(bundle.path, request.param[0], device=request.param[1])


def requests(count=12):
    """Of every kind: texts alone, two prompts, pictures to start from, latents as output."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    kinds = [{}, {"num_images_per_prompt": 3}, {"image": picture, "num_inference_steps": 2}, {"output_type": "latent"}]
    for i, kind in zip(range(count), itertools.cycle(kinds)):
        yield {"prompt": [f"cat {i}", "a dog"], "seed": i, "num_inference_steps": 1 + i % 4, "output_type": "np"} | kind


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("sdturbo-")]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_results_come_in_order_and_each_is_that_of_a_plain_call(bundle, backend, device):
    pipe = Pipeline.load(bundle.path, backend, device=device)
    found = list(pipe.stream(requests()))
    expected = [pipe(**one) for one in requests()]
    assert len(found) == 12
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.images, other.images)
        assert (one.seeds, one.strength, one.num_inference_steps) == (
            other.seeds,
            other.strength,
            other.num_inference_steps,
        )
    assert threads() == []


def test_pictures_say_how_they_were_made(pipe):
    (found,) = pipe.stream([{"prompt": "a cat", "seed": 3}])
    assert found.images[0].info == pipe("a cat", seed=3).images[0].info
    assert {"text_encoder", "denoiser", "decoder", "output", "total"} <= set(found.timings)


def test_the_three_stages_work_at_the_same_time(bundle):
    """Each stage waits until the others have begun, with other requests: a stream without overlap would break the barrier."""
    pipe = Pipeline.load(bundle.path, "null", image_to_image=False)
    meeting = threading.Barrier(3, timeout=60)
    rounds = {"text_encoder": 0, "denoiser": 0, "decoder": 0}
    last = len(rounds) - 1

    def meet(name, run):
        def meeting_first(inputs):
            number = rounds[name]
            rounds[name] += 1
            place = list(rounds).index(name)  # request n is in stage `place` in round n + place
            if last <= number + place <= 5:
                meeting.wait()
            return run(inputs)

        return meeting_first

    for (name, size, _), session in pipe._sessions.items():
        if size == 1:
            session.run = meet(name, session.run)
    found = list(pipe.stream({"prompt": f"cat {i}", "output_type": "np"} for i in range(6)))
    assert [type(one).__name__ for one in found] == ["Result"] * 6
    assert rounds == {"text_encoder": 6, "denoiser": 6, "decoder": 6}


def test_a_request_that_fails_yields_its_error_in_its_place(pipe):
    given = list(requests())
    stop = threading.Event()
    stop.set()
    spoilt = {
        1: ({"prompt": "a cat", "seed": -1}, InvalidRequest, "seed -1"),
        3: ({"seed": 1}, InvalidRequest, "without a prompt"),
        4: ({"prompt": "a cat", "guidance": 7}, InvalidRequest, "guidance"),
        5: ("a cat", InvalidRequest, "type str"),
        7: ({"prompt": "a cat", "cancel": stop}, Cancelled, "before tokenizer"),
        8: ({"prompt": "a cat", "cancel": 1}, InvalidRequest, "is_set"),
    }
    for i, (one, _, _) in spoilt.items():
        given[i] = one
    found = list(pipe.stream(given))
    for i, one in enumerate(found):
        if i in spoilt:
            _, kind, text = spoilt[i]
            assert type(one) is kind
            assert text in str(one)
        else:
            assert np.array_equal(one.images, pipe(**given[i]).images)
    assert len(found) == len(given)


@pytest.mark.parametrize("stage", ["text_encoder", "denoiser", "decoder"])
def test_a_stage_that_fails_costs_one_request(bundle, stage):
    pipe = failing(bundle, stage, BackendUnavailable("the GPU fell off"))
    found = list(pipe.stream({"prompt": f"cat {i}"} for i in range(5)))
    assert [type(one).__name__ for one in found] == ["Result", "Result", "BackendUnavailable", "Result", "Result"]


@pytest.mark.parametrize("stage", ["text_encoder", "denoiser", "decoder"])
def test_an_error_that_is_not_ours_is_raised_after_the_results_before_it(bundle, stage):
    pipe = failing(bundle, stage, ZeroDivisionError("a bug"))
    results = pipe.stream({"prompt": f"cat {i}"} for i in range(5))
    assert [type(next(results)).__name__ for _ in range(2)] == ["Result", "Result"]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(results)
    assert threads() == []


def failing(bundle, stage, error):
    """A pipeline whose `stage` raises the error at its third run."""
    pipe = Pipeline.load(bundle.path, "null", image_to_image=False)
    session = pipe._sessions[stage, 1, bundle.sizes[0]]
    run, numbers = session.run, itertools.count()

    def third(inputs):
        if next(numbers) == 2:
            raise error
        return run(inputs)

    session.run = third
    return pipe


def test_a_token_stops_its_request_between_stages_and_no_other(bundle):
    pipe = Pipeline.load(bundle.path, "null", image_to_image=False)
    stop = threading.Event()
    session = pipe._sessions["denoiser", 1, bundle.sizes[0]]
    run = session.run

    def stopping(inputs):
        stop.set()
        return run(inputs)

    session.run = stopping
    found = list(pipe.stream([{"prompt": "a cat", "cancel": stop}, {"prompt": "a dog"}]))
    assert isinstance(found[0], Cancelled)
    assert "before decoder" in str(found[0])
    assert not isinstance(found[1], SDTurboError)


def test_an_endless_stream_is_read_ahead_a_little_and_closing_it_ends_the_threads(pipe):
    asked = itertools.count()
    last = 0

    def endless():
        nonlocal last
        for last in asked:
            yield {"prompt": f"cat {last}", "num_inference_steps": 4}

    results = pipe.stream(endless())
    assert threads() == []  # nothing begins before the first is asked for
    for i in range(5):
        next(results)
        assert last < i + pipelined.IN_FLIGHT
    assert len(threads()) == 3
    results.close()
    assert threads() == []


def test_closing_stops_what_is_under_way_before_its_next_stage(bundle, monkeypatch):
    stop, decoded = threading.Event(), []
    monkeypatch.setattr(pipelined, "threading", types.SimpleNamespace(Event=lambda: stop))
    pipe = Pipeline.load(bundle.path, "null", image_to_image=False)
    session = pipe._sessions["decoder", 1, bundle.sizes[0]]
    run = session.run

    def held(inputs):
        decoded.append(1)
        assert len(decoded) == 1 or stop.wait(60)
        return run(inputs)

    session.run = held
    results = pipe.stream({"prompt": f"cat {i}"} for i in itertools.count())
    next(results)
    results.close()
    assert stop.is_set()
    assert len(decoded) <= 2  # the second had begun, or had not; no third one does
    assert threads() == []


def test_what_the_requests_raise_ends_the_stream(pipe):
    def broken():
        yield {"prompt": "a cat"}
        raise LookupError("no more prompts")

    with pytest.raises(LookupError, match="no more prompts"):
        list(pipe.stream(broken()))
    assert threads() == []


def test_streams_and_calls_at_the_same_time_do_not_disturb_each_other(pipe):
    expected = [pipe(**one).images for one in requests()]
    both = zip(pipe.stream(requests()), pipe.stream(requests()), requests(), expected, strict=True)
    for one, other, given, images in both:
        assert all(np.array_equal(found.images, images) for found in (one, other, pipe(**given)))


def test_no_requests_give_no_results(pipe):
    assert list(pipe.stream([])) == []
    assert threads() == []
