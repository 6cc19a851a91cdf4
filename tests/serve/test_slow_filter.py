"""A filter that takes its time: the engine, the queue, the deadline and live connections beside it."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from fastapi.testclient import TestClient
from filters import Words, error_of
from serving import GENERATIONS, client_of, listening, load, wait_until
from websockets.sync.client import connect

from sdturbo_serve import create_app
from sdturbo_serve.filtering import THREADS


class Waits(Words):
    """Judges the prompt "second" only once it is free to."""

    def __init__(self):
        super().__init__()
        self.asked, self.free = threading.Event(), threading.Event()

    def check_prompt(self, prompt):
        self.prompts.append(prompt)
        if prompt == "second":
            self.asked.set()
            assert self.free.wait(30)


@pytest.mark.parametrize("judged_first", [True, False])
def test_a_finished_frame_does_not_wait_for_the_next_ones_verdict_which_is_asked_for_once(gated, judged_first):
    pipeline, gate = gated
    waits = Waits()
    with listening(pipeline, filter=waits) as url, connect(url.replace("http", "ws") + "/v1/live") as socket:

        def numbers():
            head = json.loads(socket.recv(20))
            assert isinstance(socket.recv(20), bytes)
            return head["type"], head["frame"]

        gate.shut()
        socket.send(json.dumps({"prompt": "first"}))
        gate.wait_for_entry()
        socket.send(json.dumps({"prompt": "second"}))
        assert waits.asked.wait(20)
        if judged_first:  # too late to take the first one's place, so it is put back
            waits.free.set()
            time.sleep(0.2)
        gate.open.set()
        assert numbers() == ("frame", 1)
        waits.free.set()
        assert numbers() == ("frame", 2)
    assert waits.prompts == ["first", "second"]


def test_a_slow_filter_does_not_hold_up_the_engine(serve_bundle):
    """While one request waits for its verdict, others are drawn."""

    class Slow:
        def __init__(self):
            self.free = threading.Event()

        def check_prompt(self, prompt):
            assert prompt != "slow" or self.free.wait(30)

        def check_picture(self, picture):
            return None

    slow = Slow()
    with listening(load(serve_bundle), filter=slow) as url, ThreadPoolExecutor() as threads:
        held = threads.submit(httpx2.post, url + GENERATIONS, json={"prompt": "slow"}, timeout=30)
        for number in range(5):
            assert httpx2.post(url + GENERATIONS, json={"prompt": f"number {number}"}).status_code == 200
        assert not held.done()
        slow.free.set()
        assert held.result().status_code == 200


def test_a_verdict_that_does_not_come_is_given_up_at_the_deadline(bare):
    free = threading.Event()

    class Stuck:
        def check_prompt(self, prompt):
            free.wait(30)

        def check_picture(self, picture):
            return None

    with client_of(bare, filter=Stuck(), deadline_s=0.2) as client:
        service = client.app.state.service
        for _ in range(THREADS):
            client.post(GENERATIONS, json={"prompt": "x"})
        start = time.monotonic()
        error = error_of(client.post(GENERATIONS, json={"prompt": "x"}), 504)
        assert time.monotonic() - start < 10
        assert not service._filter._questions  # no thread is left to take it
        stuck = [thread for thread in threading.enumerate() if thread.name.startswith("sdturbo-filter")]
        assert stuck
        assert all(thread.daemon for thread in stuck)  # they do not hold up the end of the server
        free.set()
    assert error["code"] == "deadline_exceeded"


class Sleepy(Words):
    """Takes `seconds` for each prompt and each picture."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def check_prompt(self, prompt):
        self.prompts.append(prompt)
        time.sleep(self.seconds)

    def check_picture(self, picture):
        time.sleep(self.seconds)


def test_requests_at_the_filter_fill_the_queue_and_more_are_429_unasked(bare):
    sleepy = Sleepy(0.5)
    with listening(bare, filter=sleepy, max_queue=2, deadline_s=10) as url, ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(httpx2.post, url + GENERATIONS, json={"prompt": "x"}, timeout=30) for _ in range(16)]
        answers = [answer.result() for answer in asked]
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert len(sleepy.prompts) == codes.count(200)
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1


def test_the_filter_is_not_asked_before_the_engine_is_ready(bare):
    sleepy = Sleepy(0)
    app = create_app(bare, filter=sleepy)
    with TestClient(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        app.state.service.not_ready = "The engine is warming up."
        assert error_of(client.post(GENERATIONS, json={"prompt": "x"}), 503)["code"] == "not_ready"
        assert not sleepy.prompts


def test_prompt_and_picture_share_one_deadline(bare):
    """Each question alone takes less than the deadline, and both together take more."""
    with client_of(bare, filter=Sleepy(0.6), deadline_s=1.0) as client:
        assert error_of(client.post(GENERATIONS, json={"prompt": "x"}), 504)["code"] == "deadline_exceeded"
        assert "sdturbo_deadline_exceeded_total 1.0" in client.get("/metrics").text
