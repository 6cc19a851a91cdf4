"""A client's connection as uvicorn holds it, with an end for what is slow, endless or no HTTP, in OpenAI's shape.

Knows bytes and seconds; does not know what a request means. Behind Ray the connections are Ray's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import socket
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sdturbo_serve.errors import error_body
from sdturbo_serve.settings import MIB

HEAD_S = 10.0  # for a request's head, and for the rest of a body whose answer is out; uvicorn itself waits for ever
LINGER_S = 1.0  # in which what a refused client still sends is read: a reset would take the answer from it
UNREAD_S = 60.0  # after which a client that takes nothing of its answer is dropped
MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
HANDSHAKE_LINE, HANDSHAKE_HEADERS = (
    8192,
    128,
)  # beyond which the library neither answers a WebSocket's handshake nor ends it
LIVE_MESSAGE = 16 * MIB
UNREAD_PONGS = MIB  # bytes that wait for a client which pings and does not read

Refusal = tuple[int, str, str]  # status line's number, message, code


class TimedProtocol(HttpToolsProtocol):
    """HTTP. A clock runs while nothing is being answered and something is expected: a head, or the rest of a body."""

    _clock: asyncio.TimerHandle | None = None
    _incomplete = 0  # bytes since a head, a piece of a body or a message was complete
    _refusal: Refusal | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1e3))

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._incomplete += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._incomplete > MAX_HEAD:
            self._refuse(_too_long())
        elif not self.cycle or self.cycle.response_complete:  # uvicorn has stopped its own clock
            self._start_clock()

    def on_headers_complete(self) -> None:
        self._incomplete = 0
        self._stop_clock()
        self._refusal = self._fault()
        if self._refusal is not None:
            raise ValueError(self._refusal)  # which ends the parsing
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._incomplete = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or (400, msg, "invalid_http"))

    def _fault(self) -> Refusal | None:
        """What is wrong with a head that is HTTP."""
        names = [name for name, _ in self.headers]
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            return _too_long()
        if names.count(b"host") > 1:
            return 400, "Got more than one Host header.", "invalid_http"
        assert self.parser is not None
        if self.parser.should_upgrade() and self._should_upgrade():
            return self._handshake_fault(self.parser.get_method())
        return None

    def _handshake_fault(self, method: bytes) -> Refusal | None:
        """What is wrong with a WebSocket's handshake (RFC 6455, 4.2.1)."""
        given = dict(self.headers)
        lines = [len(self.url), *(len(name) + len(value) for name, value in self.headers)]
        if len(lines) > HANDSHAKE_HEADERS or max(lines) > HANDSHAKE_LINE - 16:
            text = f"A WebSocket's handshake has at most {HANDSHAKE_HEADERS - 1} headers of {HANDSHAKE_LINE - 16} bytes each."
            return 431, text, "head_too_large"
        if method != b"GET":
            return 405, "A WebSocket's handshake is a GET.", "method_not_allowed"
        if given.get(b"sec-websocket-version") != b"13":
            return 426, "Expected the header Sec-WebSocket-Version: 13.", "invalid_websocket"
        try:
            key = base64.b64decode(given.get(b"sec-websocket-key", b""), validate=True)
        except binascii.Error:
            key = b""
        return (
            None if len(key) == 16 else (400, "Expected 16 bytes in base64 as Sec-WebSocket-Key.", "invalid_websocket")
        )

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is being received, if nothing was answered to it yet, and close."""
        self._refused = True
        self._stop_clock()
        cycle = self.cycle
        if cycle and (self.pipeline or (cycle.response_started if cycle.more_body else not cycle.response_complete)):
            self.transport.close()  # another answer is under way, or this one's
            return
        if cycle and cycle.more_body:  # its application waits for the rest
            cycle.disconnected = True
            cycle.message_event.set()
        status, message, code = refusal
        body = json.dumps(error_body(status, message, code=code)).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        if status == HTTPStatus.UPGRADE_REQUIRED:
            headers["Sec-WebSocket-Version"] = "13"
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.write_eof()
        self._clock = self.loop.call_later(LINGER_S, self.transport.close)

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class LiveProtocol(WebSocketsSansIOProtocol):
    """WebSockets. Whoever pings and reads no pong is dropped."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # a head that the library cannot read; it came in one piece
            self.transport.close()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > UNREAD_PONGS:
            self.transport.abort()
        else:
            super().handle_ping()


def _too_long() -> Refusal:
    return 431, f"The request's line and headers are longer than {MAX_HEAD // 1024} KiB.", "head_too_large"
