"""Queue, batches, deadlines and cancellation, with an engine that is held back."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from serving import GENERATIONS, client_of, listening, wait_until
from websockets.sync.client import connect

from sdturbo import Cancelled, OutputError, Pipeline
from sdturbo.blend import slerp
from sdturbo_serve.batch import draw
from sdturbo_serve.metrics import Metrics
from sdturbo_serve.picture import QueuedPicture
from sdturbo_serve.worker import QueueFull, Worker


@pytest.fixture
def worker(gated):
    """(worker, gate), the engine busy with a first picture until the gate opens."""
    pipeline, gate = gated
    worker = Worker(pipeline, 8, Metrics())
    gate.shut()
    worker.start()
    worker.submit([QueuedPicture("the first", 0, 1)])
    gate.wait_for_entry()
    yield worker, gate
    gate.open.set()
    worker.stop()


def pixels(picture):
    return np.asarray(picture.drawn.result(10).picture)


def test_what_waits_is_drawn_in_the_bundles_batch_sizes_and_equals_the_bare_engine(worker, bare):
    worker, gate = worker
    pictures = [QueuedPicture(f"number {i}", 10 + i, 2) for i in range(7)]
    for picture in pictures:
        worker.submit([picture])
    gate.open.set()
    for picture in pictures:
        expected = bare(picture.prompt, seed=picture.seed, num_inference_steps=2, output_type="np").images[0]
        assert np.array_equal(pixels(picture), expected)
    assert gate.batches == [1, 4, 4, 2, 2, 1, 1]  # two steps each
    assert [len(picture.drawn.result().batch.images) for picture in pictures] == [4, 4, 4, 4, 2, 2, 1]


def test_pictures_that_do_not_go_together_are_drawn_apart_and_in_order(worker, bare):
    worker, gate = worker
    start = np.full((64, 64, 3), 90, np.uint8)
    pictures = [
        QueuedPicture("x", 1, 1),
        QueuedPicture("x", 1, 2),
        QueuedPicture("x", 1, 2, start, 0.5),
        QueuedPicture("x", 2, 1),
    ]
    worker.submit(pictures)
    gate.open.set()
    expected = [
        bare("x", seed=1, output_type="np"),
        bare("x", seed=1, num_inference_steps=2, output_type="np"),
        bare("x", start, seed=1, num_inference_steps=2, strength=0.5, output_type="np"),
        bare("x", seed=2, output_type="np"),
    ]
    assert all(np.array_equal(pixels(a), b.images[0]) for a, b in zip(pictures, expected, strict=True))
    assert gate.batches == [1, 2, 1, 1, 1]


def test_pictures_with_different_masks_are_not_mixed(worker, bare):
    worker, gate = worker
    start = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    left, right = np.zeros((2, 64, 64), bool)
    left[:, :16] = right[:, 48:] = True
    masks = [left, right, left, right, None, left]
    pictures = [QueuedPicture(f"number {i}", i, 2, start, 1.0, mask) for i, mask in enumerate(masks)]
    worker.submit(pictures)
    gate.open.set()
    drawn = [pixels(picture) for picture in pictures]
    for picture, mask, image in zip(pictures, masks, drawn, strict=True):
        asked = {"strength": 1.0, "mask_image": mask, "num_inference_steps": 2, "output_type": "np"}
        assert np.array_equal(image, bare(picture.prompt, start, seed=picture.seed, **asked).images[0])
    assert all(np.array_equal(image[:, 32:], start[:, 32:]) for image in (drawn[0], drawn[2], drawn[5]))
    assert all(np.array_equal(image[:, :32], start[:, :32]) for image in (drawn[1], drawn[3]))
    assert [len(picture.drawn.result().batch.images) for picture in pictures] == [2, 2, 2, 2, 1, 1]


def test_blends_are_drawn_together_apart_from_plain_prompts_and_equal_the_bare_engine(worker, bare):
    worker, gate = worker
    shares = [0.0, 0.25, 0.5, 1.0]
    blends = [QueuedPicture("a cat", 5, 1, second_prompt="a boat", blend=share) for share in shares]
    plain = QueuedPicture("a cat", 5, 1)
    worker.submit([blends[0], plain, *blends[1:]])
    gate.open.set()
    ends = [bare.encode_prompt(prompt) for prompt in ("a cat", "a boat")]
    for picture, share in zip(blends, shares, strict=True):
        expected = bare(prompt_embeds=slerp(*ends, share), seed=5, output_type="np").images[0]
        assert np.array_equal(pixels(picture), expected)
    assert np.array_equal(pixels(blends[0]), pixels(plain))
    assert np.array_equal(pixels(blends[3]), bare("a boat", seed=5, output_type="np").images[0])
    assert not np.array_equal(ends[0], ends[1])
    assert gate.batches == [1, 4, 1]
    assert "text_encoder" in blends[0].drawn.result().batch.timings


def test_a_blend_starts_from_an_image_and_a_mask_too(worker, bare):
    worker, gate = worker
    start = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[:, :16] = True
    picture = QueuedPicture("a cat", 5, 2, start, 1.0, mask, second_prompt="a boat", blend=0.5)
    worker.submit([picture])
    gate.open.set()
    embeds = slerp(bare.encode_prompt("a cat"), bare.encode_prompt("a boat"), 0.5)
    asked = {"mask_image": mask, "strength": 1.0, "num_inference_steps": 2, "output_type": "np"}
    expected = bare(image=start, prompt_embeds=embeds, seed=5, **asked).images[0]
    assert np.array_equal(pixels(picture), expected)


@pytest.mark.parametrize(
    ("prompts", "dropped"),
    [
        (("a cat", "a boat"), ""),
        (("cat " * 75 + "dog", "a boat"), "dog"),
        (("a cat", "cat " * 75 + "bird"), "bird"),
        (("cat " * 75 + "dog", "cat " * 75 + "bird"), "dog\nbird"),
    ],
)
def test_a_blend_reports_what_either_prompt_lost(bare, prompts, dropped):
    picture = QueuedPicture(prompts[0], 1, 1, second_prompt=prompts[1], blend=0.5)
    assert draw(bare, (picture,)).dropped == [dropped]


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_again(worker):
    worker, _ = worker
    worker.submit([QueuedPicture("x", i, 1) for i in range(6)])
    with pytest.raises(QueueFull) as refused:
        worker.submit([QueuedPicture("x", i, 1) for i in range(3)])
    assert refused.value.retry_after >= 1
    assert worker.waiting() == 6
    worker.submit([QueuedPicture("x", i, 1) for i in range(2)])


def test_a_cancelled_picture_leaves_the_queue_and_makes_room(worker):
    worker, gate = worker
    pictures = [QueuedPicture("x", i, 1) for i in range(8)]
    worker.submit(pictures)
    for picture in pictures[:4]:
        picture.drawn.cancel()
    later = [QueuedPicture("x", 9, 1) for _ in range(4)]
    worker.submit(later)
    gate.open.set()
    assert pixels(pictures[4]).shape == pixels(later[3]).shape == (64, 64, 3)
    assert gate.batches == [1, 4, 4]


def test_a_worker_that_stops_gives_up_its_queue_and_takes_no_more(worker):
    worker, gate = worker
    waiting = QueuedPicture("x", 1, 1)
    worker.submit([waiting])
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(worker.stop)
        with pytest.raises(Cancelled, match="stopping"):
            waiting.drawn.result(10)
        with pytest.raises(Cancelled, match="stopping"):
            worker.submit([QueuedPicture("x", 2, 1)])
        gate.open.set()
        stop.result(10)
    assert gate.batches == [1]


def test_a_picture_nobody_waits_for_stops_between_two_stages(gated):
    pipeline, gate = gated
    worker = Worker(pipeline, 8, Metrics())
    worker.start()
    gate.shut()
    picture = QueuedPicture("x", 0, 4)
    worker.submit([picture])
    gate.wait_for_entry()
    picture.drawn.cancel()
    gate.open.set()
    worker.stop()
    assert gate.batches == [1]  # of four steps


def test_a_batch_goes_on_while_anybody_waits_for_one_of_it(gated):
    pipeline, gate = gated
    worker = Worker(pipeline, 8, Metrics())
    gate.shut()
    worker.start()
    pictures = [QueuedPicture("x", i, 2) for i in range(4)]
    worker.submit(pictures)
    gate.wait_for_entry()
    pictures[0].drawn.cancel()
    gate.open.set()
    assert pixels(pictures[3]).shape == (64, 64, 3)
    assert gate.batches == [4, 4]
    worker.stop()


def test_a_newer_picture_takes_the_place_in_the_queue_until_the_engine_begins(worker, bare):
    worker, gate = worker
    old, new, behind = QueuedPicture("old", 1, 1), QueuedPicture("new", 2, 2), QueuedPicture("behind", 3, 2)
    worker.submit([old, behind])
    assert worker.swap(old, new)
    assert worker.waiting() == 2
    gate.open.set()
    assert np.array_equal(pixels(new), bare("new", seed=2, num_inference_steps=2, output_type="np").images[0])
    assert old.drawn.cancelled()
    assert not worker.swap(new, QueuedPicture("too late", 4, 1))


def test_one_bad_picture_does_not_spoil_its_batch(worker, monkeypatch):
    worker, gate = worker
    pipeline = worker._pipeline
    decode = pipeline._decode

    def decode_or_fail(job):
        result = decode(job)
        if any(np.array_equal(image, spoilt) for image in result.images):
            raise OutputError("no picture")
        return result

    spoilt = pipeline("x", seed=2, output_type="np").images[0] if gate.open.set() is None else None
    gate.shut()
    monkeypatch.setattr(type(pipeline), "_decode", lambda self, job: decode_or_fail(job))
    worker.submit([QueuedPicture("hold", 0, 4)])
    gate.wait_for_entry()
    pictures = [QueuedPicture("x", i, 1) for i in range(4)]
    worker.submit(pictures)
    gate.open.set()
    with pytest.raises(OutputError):
        pictures[2].drawn.result(10)
    assert all(pixels(pictures[i]).shape == (64, 64, 3) for i in (0, 1, 3))


@pytest.mark.parametrize(
    ("device", "parts"),
    [("cpu", {"text_encoder", "denoiser", "decoder"}), ("null:0", {"engines"})],
)
def test_every_part_of_a_batch_is_a_metric_whatever_the_backend_calls_it(bundle_dir, device, parts):
    metrics = Metrics()
    worker = Worker(Pipeline.load(bundle_dir, "null", device=device), 8, metrics)
    worker.start()
    picture = QueuedPicture("x", 0, 2)
    worker.submit([picture])
    timings = picture.drawn.result(10).batch.timings
    worker.stop()
    samples = {
        sample.labels["stage"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "sdturbo_stage_seconds_sum"
    }
    assert samples == {part: pytest.approx(ms / 1e3) for part, ms in timings.items() if part != "total"}
    assert samples.keys() == parts | {"tokenizer", "noise", "output"}


def test_a_full_queue_is_429_with_retry_after(gated):
    pipeline, gate = gated
    with client_of(pipeline, max_queue=2) as client, ThreadPoolExecutor(3) as pool:
        gate.shut()
        first = pool.submit(client.post, GENERATIONS, json={"prompt": "x"})
        gate.wait_for_entry()
        rest = pool.submit(client.post, GENERATIONS, json={"prompt": "x", "n": 2})
        wait_until(lambda: "sdturbo_queue_pictures 2.0" in client.get("/metrics").text)
        refused = client.post(GENERATIONS, json={"prompt": "x"})
        gate.open.set()
        assert (first.result().status_code, rest.result().status_code) == (200, 200)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


def test_a_deadline_answers_in_time_and_gives_the_work_up(gated):
    pipeline, gate = gated
    with client_of(pipeline, deadline_s=0.3) as client:
        gate.shut()
        answer = client.post(GENERATIONS, json={"prompt": "x", "steps": 4})
        gate.open.set()
        wait_until(lambda: 'sdturbo_cancelled_total{where="engine"} 1.0' in client.get("/metrics").text)
        assert client.post(GENERATIONS, json={"prompt": "x"}).status_code == 200
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert len(gate.batches) == 2  # one step of four, and the second request's


def test_an_engine_that_ends_answers_waiting_clients_at_once_and_refuses_later_ones(gated, monkeypatch):
    pipeline, gate = gated
    draw = Worker._draw

    def draw_and_end(worker, batch):
        draw(worker, batch)
        raise SystemExit

    monkeypatch.setattr(Worker, "_draw", draw_and_end)
    with listening(pipeline, deadline_s=1e6) as url, ThreadPoolExecutor(3) as pool:
        gate.shut()
        drawn = pool.submit(httpx2.post, url + GENERATIONS, json={"prompt": "x"}, timeout=60)
        gate.wait_for_entry()
        waiting = pool.submit(httpx2.post, url + GENERATIONS, json={"prompt": "x", "n": 2}, timeout=60)
        wait_until(lambda: "sdturbo_queue_pictures 2.0" in httpx2.get(f"{url}/metrics").text)
        gate.open.set()
        assert drawn.result().status_code == 200
        later = httpx2.post(url + GENERATIONS, json={"prompt": "x"}, timeout=60)
        for answer in (waiting.result(), later):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_ended")
            assert answer.headers["retry-after"]
        with connect(url.replace("http", "ws") + "/v1/live") as connection:
            connection.send(json.dumps({"prompt": "x"}))
            assert json.loads(connection.recv(60))["error"]["code"] == "engine_ended"
        assert httpx2.get(f"{url}/healthz").status_code == 503
        unready = httpx2.get(f"{url}/readyz")
        assert (unready.status_code, unready.json()["status"]) == (503, "The engine's thread has ended.")


@contextmanager
def asked(url):
    """A connection with a request under way; its end is the client's going away."""
    address, body = urlsplit(url), json.dumps({"prompt": "x", "steps": 4}).encode()
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield


def test_a_client_that_goes_away_cancels_its_work_in_the_queue_and_in_the_engine(gated, caplog):
    pipeline, gate = gated
    with listening(pipeline) as url:
        gate.shut()

        with asked(url):
            gate.wait_for_entry()
            with asked(url):
                wait_until(lambda: "sdturbo_queue_pictures 1.0" in httpx2.get(f"{url}/metrics").text)
        wait_until(lambda: 'status="499"} 2.0' in httpx2.get(f"{url}/metrics").text)
        gate.open.set()
        wait_until(lambda: 'sdturbo_cancelled_total{where="engine"} 1.0' in httpx2.get(f"{url}/metrics").text)
        wait_until(lambda: 'sdturbo_cancelled_total{where="queue"} 1.0' in httpx2.get(f"{url}/metrics").text)
        assert gate.batches == [1]  # the first step of the first request, nothing else
    assert not [record for record in caplog.records if record.name == "asyncio"]
