"""A client's connection as uvicorn holds it. Slow, endless and broken input ends it, with an answer in OpenAI's shape.

Knows bytes and seconds, not the meaning of a request. Behind Ray the connections are Ray's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
import sys
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sdturbo_serve.errors import ApiError
from sdturbo_serve.settings import MIB

HEAD_S = 10.0  # for a request's head, and for the rest of a body that was answered early. uvicorn has no such limit
LINGER_S = 1.0  # for reading on after a refusal. To close at once would reset the connection, and the answer be lost
UNREAD_S = 60.0  # a client that reads nothing of its answer for so long is dropped
MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
# beyond these the library neither answers a WebSocket's handshake nor ends it
HANDSHAKE_LINE = 8192 - 16  # bytes
HANDSHAKE_HEADERS = 128 - 1
LIVE_MESSAGE = 16 * MIB
UNREAD_PONGS = MIB  # bytes that wait for a client that pings and does not read


class TimedProtocol(HttpToolsProtocol):
    """HTTP with a clock. It runs while no answer is under way and a head, or the rest of a body, is expected."""

    _clock: asyncio.TimerHandle | None = None
    _incomplete = 0  # bytes since the last complete head, piece of a body, or message
    _fault: ApiError | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()
        if sys.platform == "linux":  # elsewhere there is no such option
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
        try:
            self._check_head()
        except ApiError as error:  # it ends the parsing, and uvicorn calls send_400_response
            self._fault = error
            raise
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
        self._refuse(self._fault or ApiError(400, msg, code="invalid_http"))

    def _check_head(self) -> None:
        """Raise ApiError for a head that is valid HTTP and still refused."""
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            raise _too_long()
        if [name for name, _ in self.headers].count(b"host") > 1:
            raise ApiError(400, "Got more than one Host header. Expected one.", code="invalid_http")
        assert self.parser is not None
        if self.parser.should_upgrade() and self._should_upgrade():
            self._check_handshake(self.parser.get_method())

    def _check_handshake(self, method: bytes) -> None:
        """Raise ApiError for a WebSocket's handshake against RFC 6455, 4.2.1."""
        headers = dict(self.headers)
        lengths = [len(self.url), *(len(name) + len(value) for name, value in self.headers)]
        if len(self.headers) > HANDSHAKE_HEADERS or max(lengths) > HANDSHAKE_LINE:
            text = f"A WebSocket's handshake has at most {HANDSHAKE_HEADERS} headers of {HANDSHAKE_LINE} bytes each."
            raise ApiError(431, text, code="head_too_large")
        if method != b"GET":
            raise ApiError(405, "A WebSocket's handshake is a GET.")
        if headers.get(b"sec-websocket-version") != b"13":
            text, version = "Expected the header Sec-WebSocket-Version: 13.", {"Sec-WebSocket-Version": "13"}
            raise ApiError(426, text, code="invalid_websocket", headers=version)
        try:
            key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != 16:
            raise ApiError(400, "Expected 16 bytes in base64 as Sec-WebSocket-Key.", code="invalid_websocket")

    def _refuse(self, error: ApiError) -> None:
        """Answer the request that is being received, unless an answer has begun, and close."""
        self._refused = True
        self._stop_clock()
        cycle = self.cycle
        if cycle and (self.pipeline or (cycle.response_started if cycle.more_body else not cycle.response_complete)):
            self.transport.close()  # an answer is under way, to this request or to an earlier one
            return
        if cycle and cycle.more_body:  # its application waits for the rest
            cycle.disconnected = True
            cycle.message_event.set()
        response = error.response()
        response.headers["Connection"] = "close"
        status_line = f"HTTP/1.1 {error.status_code} {HTTPStatus(error.status_code).phrase}".encode()
        headers = (name + b": " + value for name, value in response.raw_headers)
        self.transport.write(b"\r\n".join([status_line, *headers, b"", bytes(response.body)]))
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
    """WebSockets. A client that pings and reads no pong is dropped."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the library cannot read the head, although it got all of it
            self.transport.close()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > UNREAD_PONGS:
            self.transport.abort()
        else:
            super().handle_ping()


def _too_long() -> ApiError:
    text = f"The request's line and headers are longer than {MAX_HEAD // 1024} KiB."
    return ApiError(431, text, code="head_too_large")
