"""A replica that dies before it answers, seen from in front of Ray's proxy; no Ray needed."""

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from sdturbo_serve.ray_proxy import ATTEMPTS, MAX_KEPT, Again


class Dying:
    """An application in front of `app` that returns without an answer `deaths` times, after it has read so much."""

    def __init__(self, app, deaths, messages=1, half_an_answer=False):
        self.app, self.deaths, self.messages, self.half_an_answer = app, deaths, messages, half_an_answer
        self.calls = 0

    async def __call__(self, scope, receive, send):
        self.calls += 1
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

    @app.get("/busy")
    def busy():
        return PlainTextResponse("too many requests are queued", 429, {"Retry-After": "2"})

    return app


def ask(dying, path="/echo", **options):
    return TestClient(Again(dying)).post(path, **options)


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


def test_what_is_too_long_to_keep_is_asked_once_and_still_passes():
    long = b"x" * (MAX_KEPT + 1)
    assert ask(Dying(application(), 0), "/length", content=long).json() == len(long)
    dying = Dying(application(), 1)
    assert ask(dying, "/length", content=long).status_code == 503
    assert dying.calls == 1


def test_rays_own_refusals_come_in_openais_shape_with_their_retry_after():
    answer = TestClient(Again(application())).get("/busy")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["message"] == "too many requests are queued"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_an_application_that_answers_is_called_once():
    dying = Dying(application(), 0)
    assert ask(dying, content=b"x").json() == {"body": "x"}
    assert dying.calls == 1
