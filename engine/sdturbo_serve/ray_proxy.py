"""A middleware in front of Ray's HTTP proxies. If a replica dies before it answers, its request goes to another one.

Ray itself leaves such a request without an answer. A repeated request draws the same picture, so it does no harm.
Ray loads this by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sdturbo_serve.ray_proxy.middlewares, set where Ray is started.
Set SDTURBO_DEADLINE_S beside it if `settings.deadline_s` is not its default.
Knows HTTP messages, not their meaning. Live connections are not repeated, because their clients connect again.
"""

from __future__ import annotations

import asyncio
import os

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdturbo.errors import InvalidRequest
from sdturbo_serve.errors import ApiError, deadline_exceeded
from sdturbo_serve.request_id import read_request_id
from sdturbo_serve.settings import MIB, Settings

ATTEMPTS = 8  # bounded, because a request that ends the engine's process would end one after another
# before the second attempt, and doubled before each further one, because Ray's router needs time to hear of a death
PAUSE_S = 0.05
MAX_REPEATED = 32 * MIB  # bytes of a body that can be sent again
TIMEOUT = "x-request-timeout-seconds"  # Ray's own header, for one attempt


def middlewares() -> list[Middleware]:
    """Ray puts these around its proxy. Raises InvalidRequest if SDTURBO_DEADLINE_S is no number above 0."""
    given = os.environ.get("SDTURBO_DEADLINE_S")
    try:
        settings = Settings() if given is None else Settings(deadline_s=float(given))
    except ValueError as error:
        text = f"Got SDTURBO_DEADLINE_S={given!r}. Expected seconds above 0, the same as settings.deadline_s."
        raise InvalidRequest(text) from error
    return [Middleware(Repeat, deadline_s=settings.deadline_s)]


class Repeat:
    """ASGI middleware. An application that returns without an answer is called again, with the same request.

    deadline_s: from a request's arrival. No attempt begins after it. Further attempts end with it, and the first replica
    knows its own deadline.
    """

    def __init__(self, app: ASGIApp, deadline_s: float) -> None:
        self._app = app
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        deadline = now() + self._deadline_s
        body = _Body(receive)
        request_id = read_request_id(Headers(scope=scope))
        answer = _Answer(scope, receive, send, request_id)
        for attempt in range(ATTEMPTS):
            attempt_scope = dict(scope)
            headers = MutableHeaders(scope=attempt_scope)
            headers["x-request-id"] = request_id
            if attempt:
                await asyncio.sleep(min(PAUSE_S * 2 ** (attempt - 1), max(0.0, deadline - now())))
                if now() >= deadline:
                    break
                headers[TIMEOUT] = f"{deadline - now():.3f}"
            await self._app(attempt_scope, body.from_start(), answer)
            if answer.begun:
                return
            if not body.can_repeat:
                break
        text = "The replicas that had this request died before they answered. Try again."
        await answer.refuse(ApiError(503, text, code="replica_died", headers={"Retry-After": "1"}))


class _Body:
    """A request's messages, recorded as they come. can_repeat: False if the body is too long or the client has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._bytes = 0
        self.can_repeat = True

    def from_start(self) -> Receive:
        recorded = iter(tuple(self._messages))

        async def receive() -> Message:
            for message in recorded:
                return message
            message = await self._receive()
            self._bytes += len(message.get("body", b""))
            if self._bytes > MAX_REPEATED or message["type"] != "http.request":
                self.can_repeat = False
                self._messages.clear()
            if self.can_repeat:
                self._messages.append(message)
            return message

        return receive


class _Answer:
    """Passes an answer on once some of its body is there. Ray's own errors are text and get OpenAI's shape."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._arrived = asyncio.get_running_loop().time()
        self._start: Message | None = None
        self._error_text: bytearray | None = None
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            MutableHeaders(scope=message)["X-Request-Id"] = self._request_id  # replica and proxy have added one each
            is_text = Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
            self._error_text = bytearray() if is_text and message["status"] >= 400 else None
            return
        text = self._error_text
        if text is not None and self._start is not None:
            text += message.get("body", b"")
            if not message.get("more_body"):
                await self._explain(self._start, text)
            return
        if not self.begun and self._start is not None:
            self.begun = True
            await self._send(self._start)
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error of this middleware's."""
        self.begun = True
        response = error.response()
        response.headers["X-Request-Id"] = self._request_id
        await response(self._scope, self._receive, self._send)

    async def _explain(self, start: Message, text: bytearray) -> None:
        if start["status"] == 408:  # Ray's status for a request that took too long, which clients would repeat
            await self.refuse(deadline_exceeded(round(asyncio.get_running_loop().time() - self._arrived, 1)))
            return
        headers = {name: value for name, value in Headers(raw=start["headers"]).items() if name == "retry-after"}
        await self.refuse(ApiError(start["status"], text.decode(errors="replace")[:500], headers=headers))
