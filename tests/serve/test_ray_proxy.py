"""A replica that dies before it answers, seen from in front of Ray's proxy; no Ray needed."""

import asyncio

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from sdturbo import InvalidRequest
from sdturbo_serve import ray_proxy
from sdturbo_serve.ray_proxy import ATTEMPTS, MAX_REPEATED, TIMEOUT, Repeat, middlewares


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(ray_proxy, "PAUSE_S", 0.0)


class Dying:
    """An application in front of `app` that returns without an answer `deaths` times, after it has read so much."""

    def __init__(self, app, deaths, messages=1, half_an_answer=False):
        self.app, self.deaths, self.messages, self.half_an_answer = app, deaths, messages, half_an_answer
        self.calls = 0
        self.headers = []

    async def __call__(self, scope, receive, send):
        self.calls += 1
        self.headers.append(dict(scope["headers"]))
        if self.calls > self.deaths:
            await self.app(scope, receive, send)
            return
        for _ in range(self.messages):
            await receive()
        if self.half_an_answer:
            await send({"type": "http.response.start", "status": 200, "headers": []})


def application():
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request):
        return {"body": (await request.body()).decode()}

    @app.post("/length")
    async def length(request: Request):
        return len(await request.body())

    @app.get("/slow")
    def slow():
        return PlainTextResponse("Request 7 timed out after 120.0s.", 408)

    @app.get("/named")
    def named(request: Request):
        name = request.headers["x-request-id"]
        answer = PlainTextResponse(name)
        answer.headers.append("X-Request-Id", "of the replica")
        answer.headers.append("X-Request-ID", "of the proxy")
        return answer

    @app.get("/busy")
    def busy():
        return PlainTextResponse("too many requests are queued", 429, {"Retry-After": "2"})

    return app


def ask(dying, path="/echo", deadline_s=60.0, **options):
    return TestClient(Repeat(dying, deadline_s)).post(path, **options)


def get(path, **options):
    return TestClient(Repeat(application(), 60.0)).get(path, **options)


@pytest.mark.parametrize("messages", [0, 1])
@pytest.mark.parametrize("half_an_answer", [False, True])
def test_the_request_is_asked_again_in_full(messages, half_an_answer):
    dying = Dying(application(), ATTEMPTS - 1, messages, half_an_answer)
    answer = ask(dying, content=(part for part in (b"one ", b"two ", b"three")))
    assert (answer.status_code, answer.json()) == (200, {"body": "one two three"})
    assert dying.calls == ATTEMPTS


def test_when_every_replica_dies_the_answer_says_so_in_openais_shape():
    dying = Dying(application(), 99)
    answer = ask(dying, content=b"x")
    assert dying.calls == ATTEMPTS
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "replica_died"


def test_it_is_asked_again_within_its_deadline_and_no_attempt_but_the_first_lasts_longer():
    dying = Dying(application(), ATTEMPTS - 1)
    assert ask(dying, deadline_s=50.0, content=b"x").status_code == 200
    first, *others = [headers.get(TIMEOUT.encode()) for headers in dying.headers]
    assert first is None
    left = [float(seconds) for seconds in others]
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] <= left[0] <= 50


def test_after_its_deadline_it_is_not_asked_again():
    class Late(Dying):
        async def __call__(self, scope, receive, send):
            await asyncio.sleep(0.02)
            await super().__call__(scope, receive, send)

    dying = Late(application(), 99)
    assert ask(dying, deadline_s=0.01, content=b"x").json()["error"]["code"] == "replica_died"
    assert dying.calls == 1


def test_the_deadline_is_the_servers_or_that_of_the_environment(monkeypatch):
    monkeypatch.delenv("SDTURBO_DEADLINE_S", raising=False)
    assert middlewares()[0].kwargs == {"deadline_s": 60.0}
    monkeypatch.setenv("SDTURBO_DEADLINE_S", "7.5")
    assert middlewares()[0].kwargs == {"deadline_s": 7.5}
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("SDTURBO_DEADLINE_S", wrong)
        with pytest.raises(InvalidRequest):
            middlewares()


def test_a_request_has_one_id_for_every_replica_and_attempt():
    answer = get("/named", headers={"X-Request-Id": "mine"})
    assert (answer.text, answer.headers.get_list("x-request-id")) == ("mine", ["mine"])
    answer = get("/named")
    assert answer.headers.get_list("x-request-id") == [answer.text]
    assert len(get("/busy").headers.get_list("x-request-id")) == 1
    dying = Dying(application(), 2)
    (request_id,) = ask(dying, content=b"x").headers.get_list("x-request-id")
    assert [headers[b"x-request-id"].decode() for headers in dying.headers] == [request_id] * 3
    (request_id,) = ask(Dying(application(), 99), content=b"x").headers.get_list("x-request-id")
    assert len(request_id) == 32


def test_rays_own_timeout_is_a_504_that_no_client_repeats():
    answer = get("/slow")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"


def test_a_body_too_long_to_repeat_is_sent_once_and_still_passes():
    long = b"x" * (MAX_REPEATED + 1)
    assert ask(Dying(application(), 0), "/length", content=long).json() == len(long)
    dying = Dying(application(), 1)
    assert ask(dying, "/length", content=long).status_code == 503
    assert dying.calls == 1


def test_rays_own_refusals_come_in_openais_shape_with_their_retry_after():
    answer = get("/busy")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["message"] == "too many requests are queued"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_an_application_that_answers_is_called_once():
    dying = Dying(application(), 0)
    assert ask(dying, content=b"x").json() == {"body": "x"}
    assert dying.calls == 1
