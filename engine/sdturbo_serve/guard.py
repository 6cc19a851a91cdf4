"""The guard around every request. It checks the host that the request names.

An HTTP request also gets a limit on its body's size and time, an id, one line in the log, and one count in the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from fastapi import WebSocket
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdturbo_serve import tracing
from sdturbo_serve.access import check_host
from sdturbo_serve.errors import ApiError
from sdturbo_serve.request_id import read_request_id
from sdturbo_serve.service import Service
from sdturbo_serve.settings import MIB

log = logging.getLogger("sdturbo.serve.access")

MAX_JSON = MIB  # bytes. The longest prompt is far below
A1111 = "/sdapi/"  # where JSON carries images


class Guard:
    """ASGI middleware. Knows bytes and seconds, not the meaning of a request."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
            return
        if scope["type"] == "websocket":
            try:
                check_host(Headers(scope=scope), self._service.settings.allow_hosts)
            except ApiError as error:
                await WebSocket(scope, receive, send).send_denial_response(error.response())
                return
        await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers = MutableHeaders(scope=scope)
        del headers["range"]  # no file here is worth a part of it, and Starlette refuses ranges with plain text
        request_id = read_request_id(headers)
        fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = fields
        status = 500  # of a request whose application fails before it answers
        is_head = scope["method"] == "HEAD"
        inner = {**scope, "method": "GET"} if is_head else scope  # FastAPI gives a GET's route no HEAD

        async def answer(message: Message) -> None:
            nonlocal status
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers["X-Request-Id"] = request_id
                answer_headers["X-Content-Type-Options"] = "nosniff"
                if "location" in answer_headers:
                    answer_headers["Location"] = relative(answer_headers["location"])
                if status == 405 and "GET" in answer_headers.get("allow", ""):
                    answer_headers["Allow"] += ", HEAD"
                if status in (408, 413):  # the rest of the body is not read
                    answer_headers["Connection"] = "close"
            await send(message)

        settings = self._service.settings
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # where another application mounts this one
        has_files = is_form or (settings.a1111 and path.startswith(A1111))
        body = _Body(receive, settings.max_upload_bytes if has_files else MAX_JSON, settings.body_s)
        try:
            with tracing.span("sdturbo.request", dict(headers.items()), path=scope["path"], request_id=request_id):
                try:
                    check_host(headers, settings.allow_hosts)
                    body.check_length(headers.get("content-length"))
                except ApiError as error:
                    await error.response()(scope, receive, answer)
                    return
                await self._app(inner, body.receive, answer)
        finally:
            route = getattr(inner.get("route"), "path", "other")
            self._service.metrics.requests.labels(route, str(status)).inc()
            ms = round((time.perf_counter() - start) * 1e3, 3)
            line = {"request_id": request_id, "method": scope["method"], "route": route, "status": status, "ms": ms}
            log.info("request", extra={"fields": line | fields})


def relative(location: str) -> str:
    """A redirect's target, seen from the path that was asked for: the same path with a slash at its end, or without one.

    Proxies may have taken a prefix away, and changed scheme and host. A relative target keeps all of these.
    """
    parts = urlsplit(location)
    name = parts.path.rstrip("/").rpartition("/")[2]
    path = f"./{name}/" if parts.path.endswith("/") else f"../{name}"
    return f"{path}?{parts.query}" if parts.query else path


class _Body:
    """A body's messages, within `limit` bytes and `seconds` for all of them."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._bytes = 0
        self._complete = False

    def check_length(self, length: str | None) -> None:
        """Refuse a body by its declared length, before a byte of it is read."""
        if length is not None and length.isdecimal() and int(length) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:  # the next message says that the client has gone
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
        return ApiError(413, f"The body is larger than {self._limit / MIB:g} MiB.")
