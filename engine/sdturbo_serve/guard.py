"""Around every request: the host it names. Around every HTTP request: a limit on its body's size and time, a name for it,
one line in the log, one count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fastapi import WebSocket
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdturbo_serve import tracing
from sdturbo_serve.access import check_host
from sdturbo_serve.errors import ApiError
from sdturbo_serve.request_id import request_id
from sdturbo_serve.service import Service
from sdturbo_serve.settings import MIB

log = logging.getLogger("sdturbo.serve.access")

MAX_JSON = MIB  # bytes; a prompt of the greatest length is far below


class Guard:
    """ASGI middleware. Knows bytes and seconds; does not know what a request means."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return
        start = time.perf_counter()
        headers = MutableHeaders(scope=scope)
        del headers["range"]  # nothing here is worth a part of it, and Starlette's refusals of ranges are text
        name = request_id(headers)
        fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = fields
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = name
                found["X-Content-Type-Options"] = "nosniff"
                if status in (408, 413):  # the rest of the body is not read
                    found["Connection"] = "close"
            await send(message)

        body = _Body(receive, self._limit(headers), self._service.settings.body_s)
        try:
            with tracing.span("sdturbo.request", dict(headers.items()), path=scope["path"], request_id=name):
                try:
                    check_host(headers, self._service.settings.allow_hosts)
                    body.check_length(headers.get("content-length"))
                except ApiError as error:
                    await JSONResponse(error.body(), error.status_code)(scope, receive, answer)
                    return
                await self._app(scope, body.receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.requests.labels(route, str(status or 500)).inc()
            took = round((time.perf_counter() - start) * 1e3, 3)
            line = {"request_id": name, "method": scope["method"], "route": route, "status": status or 500, "ms": took}
            log.info("request", extra={"fields": line | fields})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            try:
                check_host(Headers(scope=scope), self._service.settings.allow_hosts)
            except ApiError as error:
                response = JSONResponse(error.body(), error.status_code)
                await WebSocket(scope, receive, send).send_denial_response(response)
                return
        await self._app(scope, receive, send)

    def _limit(self, headers: Headers) -> int:
        is_form = headers.get("content-type", "").startswith("multipart/form-data")
        return self._service.settings.max_upload_bytes if is_form else MAX_JSON


class _Body:
    """The body's messages, until they are too many or too slow. limit: bytes; seconds: for the whole body."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._bytes = 0
        self._complete = False

    def check_length(self, length: str | None) -> None:
        """Refuse what calls itself too long before a byte of it is read."""
        if length is not None and length.isdecimal() and int(length) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:  # what comes now is the client going away
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"The body did not arrive within {self._seconds:g} s."
            raise ApiError(408, text, code="body_timeout", headers={"X-Should-Retry": "false"}) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._limit / MIB:g} MiB.", code="too_large")
