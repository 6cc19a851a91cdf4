"""uvicorn around the application: slow and idle connections end, and SIGTERM lets accepted requests finish."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdturbo_serve.errors import error_body
from sdturbo_serve.settings import MIB

HEAD_S = 10.0  # for a request's head; uvicorn itself waits for ever
KEEP_ALIVE_S = 30
LIVE_MESSAGE = 16 * MIB


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head does not come, and refuses what is no HTTP in OpenAI's shape."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_clock()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(400, msg, code="invalid_http")).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _expect_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_clock(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def serve(app: FastAPI, *, host: str, port: int, drain_s: int) -> None:
    """Listen until SIGTERM or SIGINT, then finish what was accepted within drain_s seconds.

    Returns after SIGTERM; raises KeyboardInterrupt after SIGINT.
    """
    _allow_many_sockets()
    options: dict[str, Any] = {
        "http": TimedProtocol,
        "ws_max_size": LIVE_MESSAGE,
        "ws_max_queue": 4,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": drain_s,
        "access_log": False,
        "log_config": None,
        "server_header": False,
    }
    # uvicorn raises the signal anew once it has drained: SIGTERM must then not end the process with a signal's status
    signal.signal(signal.SIGTERM, _carry_on)
    uvicorn.Server(uvicorn.Config(app, host=host, port=port, **options)).run()


def _carry_on(_: int, __: object) -> None: ...


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one: idle sockets must not keep others out."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
