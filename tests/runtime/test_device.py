"""Device buffers, sessions and recorded programs, on the null backend's device: what every GPU backend shares."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sdturbo import BackendUnavailable, Bundle, Cancelled, OutputError, Pipeline
from sdturbo.backends import BackendChoice, Offer
from sdturbo.backends.choice import first_running, fitting
from sdturbo.backends.device import DeviceProgram, DeviceSession, device_index
from sdturbo.backends.null import NullEngine, NullQueue


class Remembering(NullQueue):
    """Knows the buffers that it made."""

    def __init__(self):
        super().__init__()
        self.buffers = []

    def buffer(self, shape, dtype):
        self.buffers.append(super().buffer(shape, dtype))
        return self.buffers[-1]

    def addresses(self):
        return [(buffer.host.ctypes.data, buffer.device.ctypes.data) for buffer in self.buffers]


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return Bundle.load(make_bundle((1, 2)))


@pytest.fixture(scope="module")
def on_device(bundle):
    return Pipeline.load(bundle.path, "null", device="null")


def program(bundle, queue, steps=3, size=2):
    sessions = {
        name: DeviceSession(NullEngine(stage, size), stage, size, NullQueue()) for name, stage in bundle.stages.items()
    }
    return DeviceProgram(sessions, bundle.steps(steps), queue)


def inputs(bundle, seed=0, size=2):
    rng = np.random.default_rng(seed)
    shape = bundle.stages["decoder"].inputs[0].shape_at(size)
    return {"input_ids": rng.integers(0, 49408, (size, 77)), "latents": rng.standard_normal(shape, np.float32)}


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_pictures_on_the_device_are_those_of_the_host(bundle, on_device, steps, count):
    host = Pipeline.load(bundle.path, "null")
    request = {"num_inference_steps": steps, "num_images_per_prompt": count, "seed": 5, "output_type": "np"}
    found, expected = on_device(["a cat", "a dog"], **request), host(["a cat", "a dog"], **request)
    assert np.array_equal(found.images, expected.images)
    assert "engines" in found.timings
    assert "denoiser" in expected.timings
    assert (found.device, expected.device) == ("null:0", "cpu")


@pytest.mark.parametrize(
    ("steps", "count"), [(steps, count) for steps in (1, 2, 3, 4) for count in range(1, steps + 1)]
)
def test_image_to_image_is_one_program_too(bundle, on_device, steps, count):
    host = Pipeline.load(bundle.path, "null")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options = {"strength": count / steps, "num_inference_steps": steps, "num_images_per_prompt": 3, "output_type": "np"}
    found, expected = on_device("a cat", picture, **options), host("a cat", picture, **options)
    assert np.array_equal(found.images, expected.images)
    assert "engines" in found.timings
    assert "encoder" not in found.timings
    assert "encoder" in expected.timings


def test_latents_run_stage_by_stage(bundle, on_device):
    host = Pipeline.load(bundle.path, "null")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for image in (None, picture):
        found, expected = (
            pipe("a cat", image, num_inference_steps=2, output_type="latent") for pipe in (on_device, host)
        )
        assert np.array_equal(found.images, expected.images)


def test_without_an_encoder_there_is_no_program_from_an_image(bundle):
    pipe = Pipeline.load(bundle.path, "null", device="null", image_to_image=False)
    assert not any(from_image for from_image, *_ in pipe._programs)


def test_a_replay_takes_new_inputs_and_moves_no_buffer(bundle):
    queue = Remembering()
    joined = program(bundle, queue)
    assert joined.replays
    addresses = queue.addresses()
    assert len(addresses) == 8  # input_ids, embeddings, latents twice, image, and a row per step
    first, second = joined.run(inputs(bundle, 1)), joined.run(inputs(bundle, 2))
    assert not np.array_equal(first["image"], second["image"])
    assert all(np.array_equal(first[name], joined.run(inputs(bundle, 1))[name]) for name in first)
    plain = joined.run(inputs(bundle, 2), replay=False)
    assert all(np.array_equal(plain[name], second[name]) for name in plain)
    assert queue.addresses() == addresses


def test_results_are_the_callers_own(bundle):
    joined = program(bundle, NullQueue())
    first = joined.run(inputs(bundle, 1))
    kept = {name: value.copy() for name, value in first.items()}
    joined.run(inputs(bundle, 2))
    assert all(np.array_equal(first[name], kept[name]) for name in first)


def test_nothing_is_allocated_after_load(bundle, monkeypatch):
    queue = NullQueue()
    joined = program(bundle, queue)
    monkeypatch.setattr(NullQueue, "buffer", lambda *_: pytest.fail("a buffer was made after load"))
    joined.run(inputs(bundle))


def test_recording_runs_nothing():
    queue = NullQueue()
    ran = []
    replay = queue.record(lambda: queue.enqueue(lambda: ran.append(1)))
    queue.synchronize()
    assert ran == []
    replay()
    replay()
    queue.synchronize()
    assert ran == [1, 1]


class Failing(NullQueue):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


class Forgetful(NullQueue):
    """Its recordings lack the last copy to the host."""

    def record(self, work):
        replay = super().record(work)

        def short():
            replay()
            self._pending.pop()

        return short


class Restless(NullQueue):
    """Its replays differ from launches by a little, as sums in another order do, or by a lot."""

    by = 1e-3

    def record(self, work):
        replay = super().record(work)

        def changed():
            replay()
            self.enqueue(self.change)

        return changed

    def download(self, buffer):
        super().download(buffer)
        self.last = buffer

    def change(self):
        if self.last.host.dtype == np.float32:
            self.last.host[...] *= 1 + self.by


@pytest.mark.parametrize(("by", "replays"), [(0.0, True), (1e-3, True), (0.1, False), (np.nan, False)])
def test_a_replay_may_differ_as_sums_in_another_order_do_and_no_more(bundle, by, replays):
    queue = Restless()
    queue.by = by
    stage = bundle.stages["denoiser"]
    assert DeviceSession(NullEngine(stage, 2), stage, 2, queue).replays is replays


def test_a_lost_recording_is_in_every_result(bundle, monkeypatch):
    monkeypatch.setattr(NullQueue, "record", Failing.record)
    pipe = Pipeline.load(bundle.path, "null", device="null", image_to_image=False)
    lost = pipe("a cat").lost_recordings
    assert tuple(lost) == pipe.lost_recordings
    assert len(lost) == 2 * (3 + 4)
    assert "text_encoder at batch size 1" in lost
    assert Pipeline.load(bundle.path, "null")("a cat").lost_recordings == []


@pytest.mark.parametrize(("queue", "why"), [(Failing, "not permitted"), (Forgetful, "other values")])
def test_what_cannot_be_recorded_is_launched_plainly_and_logged(bundle, caplog, queue, why):
    with caplog.at_level(logging.WARNING, "sdturbo"):
        joined = program(bundle, queue())
    assert not joined.replays
    assert why in caplog.text
    expected = program(bundle, NullQueue()).run(inputs(bundle, 4))
    assert all(np.array_equal(value, expected[name]) for name, value in joined.run(inputs(bundle, 4)).items())


@pytest.mark.parametrize(("queue", "why"), [(Failing, "not permitted"), (Forgetful, "other values")])
def test_a_stage_that_cannot_be_recorded_is_launched_plainly_and_logged(bundle, caplog, queue, why):
    stage = bundle.stages["decoder"]
    with caplog.at_level(logging.WARNING, "sdturbo"):
        plain = DeviceSession(NullEngine(stage, 2), stage, 2, queue())
    recorded = DeviceSession(NullEngine(stage, 2), stage, 2, NullQueue())
    assert (plain.replays, recorded.replays) == (False, True)
    assert (
        f"decoder at batch size 2 and 64x64 pixels: launched plainly, for {'recording' if why[0] == 'n' else 'a replay'}"
        in caplog.text
    )
    given = {"latents": inputs(bundle)["latents"]}
    found = [plain.run(given), recorded.run(given), recorded.run(given, replay=False)]
    assert all(np.array_equal(one["image"], found[0]["image"]) for one in found)


def test_a_launch_that_fails_leaves_nothing_under_way(bundle, monkeypatch):
    queue = NullQueue()
    joined = program(bundle, queue)
    given = inputs(bundle, 1)
    expected = joined.run(given)
    bind, failing = NullEngine.bind, []

    def bind_failing(self, buffers, queue):
        launch = bind(self, buffers, queue)

        def fail():
            if failing and self._stage.name == "decoder":
                raise BackendUnavailable("the decoder failed to start")
            launch()

        return fail

    monkeypatch.setattr(NullEngine, "bind", bind_failing)
    joined = program(bundle, queue)
    failing.append(True)
    with pytest.raises(BackendUnavailable, match="failed to start"):
        joined.run(given, replay=False)
    assert queue._pending == []
    failing.clear()
    assert all(np.array_equal(value, expected[name]) for name, value in joined.run(given).items())


def test_threads_sharing_a_device_get_their_own_pictures(on_device):
    def draw(i):
        picture = None if i % 3 else np.full((64, 64, 3), i, np.uint8)  # every third stage by stage
        return on_device(f"cat {i % 5}", picture, seed=i, num_inference_steps=2, output_type="np").images

    expected = [draw(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(a, b) for a, b in zip(pool.map(draw, range(40)), expected, strict=True))


def test_cancellation_is_honoured_before_each_batch(on_device, monkeypatch):
    stop = threading.Event()
    run = DeviceProgram.run
    monkeypatch.setattr(DeviceProgram, "run", lambda *arguments: (stop.set(), run(*arguments))[1])
    with pytest.raises(Cancelled, match="before engines"):
        on_device("a cat", num_images_per_prompt=3, cancel=stop)


@pytest.mark.parametrize(
    ("name", "value", "match"), [("latents", np.nan, "non-finite"), ("image", 7, "single value 7")]
)
def test_what_cannot_be_a_picture_is_an_error(on_device, monkeypatch, name, value, match):
    run = DeviceProgram.run

    def spoilt(self, inputs):
        outputs = run(self, inputs)
        outputs[name][...] = value
        return outputs

    monkeypatch.setattr(DeviceProgram, "run", spoilt)
    with pytest.raises(OutputError, match=match):
        on_device("a cat")


def gpus(count):
    return [Offer("tensorrt", f"cuda:{i}", precision) for i in range(count) for precision in ("fp16", "fp32")]


@pytest.mark.parametrize(("device", "index"), [(None, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_devices_are_named_with_their_index(device, index):
    taken = first_running(fitting(BackendChoice("tensorrt", device), gpus(2)))
    assert taken == Offer("tensorrt", f"cuda:{index}", "fp16")
    assert device_index(taken.device) == index


@pytest.mark.parametrize("device", ["", "cpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1:1", "CUDA", "gpu:0"])
def test_a_device_of_another_kind_is_refused(device):
    (refused,) = fitting(BackendChoice("tensorrt", device), gpus(2))
    assert f"no device {device!r} here, expected one of cuda:0" in refused.reason


@pytest.mark.parametrize(("count", "there"), [(1, "cuda:0"), (2, "cuda:0, cuda:1")])
def test_a_device_out_of_range_is_refused_with_those_there(count, there):
    (refused,) = fitting(BackendChoice("tensorrt", "cuda:2"), gpus(count))
    assert f"no device 'cuda:2' here, expected one of {there}." in refused.reason
