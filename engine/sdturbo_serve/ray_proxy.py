"""In front of Ray's HTTP proxies: a request whose replica died before it answered goes to another one.

Ray itself leaves such a request without an answer. Asking again changes nothing: a picture depends on its request alone.
Ray loads this by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sdturbo_serve.ray_proxy.middlewares, set where Ray is started;
SDTURBO_DEADLINE_S beside it where `settings.deadline_s` is not its default.
Knows HTTP messages; does not know what they ask for. Live streams are not repeated: their client connects anew.
"""

from __future__ import annotations

import asyncio
import os

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdturbo.errors import InvalidRequest
from sdturbo_serve.errors import ApiError, deadline_exceeded
from sdturbo_serve.request_id import request_id
from sdturbo_serve.settings import MIB, Settings

ATTEMPTS = 8  # a request that ends the engine's process must not end one after another without bound
PAUSE_S = 0.05  # before the second attempt, and twice as long before each further one: the router hears of a death
MAX_KEPT = 32 * MIB  # bytes of a body that are kept to be sent again
TIMEOUT = "x-request-timeout-seconds"  # Ray's own, of one attempt


def middlewares() -> list[Middleware]:
    """What Ray puts around its proxy. Raises InvalidRequest for a deadline that is no number of seconds above 0."""
    given = os.environ.get("SDTURBO_DEADLINE_S")
    try:
        settings = Settings() if given is None else Settings(deadline_s=float(given))
    except ValueError as error:
        raise InvalidRequest(f"Got SDTURBO_DEADLINE_S={given!r}; expected seconds, as settings.deadline_s.") from error
    return [Middleware(Again, deadline_s=settings.deadline_s)]


class Again:
    """ASGI middleware. An application that returns without an answer is called again, with the same request.

    deadline_s: from a request's arrival; no attempt begins after it, and none but the first, whose replica knows its own
    deadline, lasts longer.
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
        name = request_id(Headers(scope=scope))
        answer = _Answer(scope, send, name)
        for attempt in range(ATTEMPTS):
            asked = dict(scope)
            headers = MutableHeaders(scope=asked)
            headers["x-request-id"] = name
            if attempt:
                await asyncio.sleep(min(PAUSE_S * 2 ** (attempt - 1), max(0.0, deadline - now())))
                if now() >= deadline:
                    break
                headers[TIMEOUT] = f"{deadline - now():.3f}"
            await self._app(asked, body.from_start(), answer)
            if answer.begun:
                return
            if not body.is_kept:
                break
        text = "The replicas that had this request died before they answered; try again."
        await answer.refuse(ApiError(503, text, code="replica_died", headers={"Retry-After": "1"}))


class _Body:
    """A request's messages, kept as they come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._bytes = 0
        self.is_kept = True  # False once it is too long, or its client has gone

    def from_start(self) -> Receive:
        kept = iter(tuple(self._messages))

        async def receive() -> Message:
            for message in kept:
                return message
            message = await self._receive()
            self._bytes += len(message.get("body", b""))
            if self._bytes > MAX_KEPT or message["type"] != "http.request":
                self.is_kept = False
                self._messages.clear()
            if self.is_kept:
                self._messages.append(message)
            return message

        return receive


class _Answer:
    """Passes an answer on once some of its body is there; an error of Ray's own, which is text, in OpenAI's shape."""

    def __init__(self, scope: Scope, send: Send, name: str) -> None:
        self._scope = scope
        self._send = send
        self._name = name
        self._arrived = asyncio.get_running_loop().time()
        self._start: Message | None = None
        self._text: bytearray | None = None
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            MutableHeaders(scope=message)["X-Request-Id"] = self._name  # replica and proxy have added one each
            is_text = Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
            self._text = bytearray() if is_text and message["status"] >= 400 else None
            return
        text = self._text
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
        headers = {**(error.headers or {}), "X-Request-Id": self._name}
        await JSONResponse(error.body(), error.status_code, headers=headers)(self._scope, _nothing, self._send)

    async def _explain(self, start: Message, text: bytearray) -> None:
        if start["status"] == 408:  # Ray's word for a request that took too long, which a client would repeat
            await self.refuse(deadline_exceeded(round(asyncio.get_running_loop().time() - self._arrived, 1)))
            return
        headers = {name: value for name, value in Headers(raw=start["headers"]).items() if name == "retry-after"}
        await self.refuse(ApiError(start["status"], text.decode(errors="replace")[:500], headers=headers))


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
