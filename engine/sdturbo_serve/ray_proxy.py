"""In front of Ray's HTTP proxies: a request whose replica died before it answered goes to another one.

Ray itself leaves such a request without an answer. Asking again changes nothing: a picture depends on its request alone.
Ray loads this by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sdturbo_serve.ray_proxy.middlewares, set where Ray is started.
Knows HTTP messages; does not know what they ask for. Live streams are not repeated: their client connects anew.
"""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdturbo_serve.errors import ApiError
from sdturbo_serve.settings import MIB

ATTEMPTS = 4
MAX_KEPT = 32 * MIB  # bytes of a body that are kept to be sent again


def middlewares() -> list[Middleware]:
    return [Middleware(Again)]


class Again:
    """ASGI middleware. An application that returns without an answer is called again, with the same request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        for _ in range(ATTEMPTS):
            answer = _Answer(scope, send)
            await self._app(dict(scope), body.from_start(), answer)
            if answer.begun:
                return
            if not body.is_kept:
                break
        text = "The replicas that had this request died before they answered; try again."
        error = ApiError(503, text, code="replica_died", headers={"Retry-After": "1"})
        await JSONResponse(error.body(), error.status_code, headers=error.headers)(scope, receive, send)


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

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self._text: bytearray | None = None
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
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

    async def _explain(self, start: Message, text: bytearray) -> None:
        self.begun = True
        headers = {name: value for name, value in Headers(raw=start["headers"]).items() if name == "retry-after"}
        error = ApiError(start["status"], text.decode(errors="replace")[:500], headers=headers)
        await JSONResponse(error.body(), error.status_code, headers=headers)(self._scope, _nothing, self._send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
