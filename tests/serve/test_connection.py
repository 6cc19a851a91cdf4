"""What comes over a socket and is slow, endless or no request, met by a server's own process and sockets."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx2
import pytest
from serving import EDITS, GENERATIONS, listening, wait_until
from websockets.sync.client import connect as connect_live

from sdturbo_serve import connection as connection_module
from sdturbo_serve import server as server_module

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
KEY, VERSION = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"Sec-WebSocket-Version: 13\r\n"
LONG = b"y" * 70_000


def connect(url):
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def read_all(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def answer_to(url, *data):
    """(status, error) of what is answered before the connection ends."""
    with connect(url) as connection:
        for piece in data:
            connection.sendall(piece)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"Traceback" not in body
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + LONG + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + LONG,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 12_000 + b"\r\n",
        b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION + b"X: " + LONG + b"\r\n\r\n",
        b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION + b"X: " + LONG[:9000] + b"\r\n\r\n",
        b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION + b"X: y\r\n" * 200 + b"\r\n",
        CHUNKED + b"1;" + LONG * 5,  # more than is read at once
        CHUNKED + b"1\r\n{\r\n0\r\nX: " + LONG * 5,
    ],
    ids=["header", "no end", "headers", "URL", "live", "live header", "live headers", "chunk", "trailer"],
)
def test_a_head_beyond_its_limit_is_431(server, data):
    status, error = answer_to(server, data)
    assert (status, error["code"]) == (431, "head_too_large")


def test_a_request_is_answered_once_however_it_goes_on(server):
    with connect(server) as odd:
        odd.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        wait_until(lambda: odd.recv(65536, socket.MSG_PEEK))
        with pytest.raises(OSError):
            while True:
                odd.sendall(LONG)
    with connect(server) as odd:
        odd.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        wait_until(lambda: odd.recv(65536, socket.MSG_PEEK))
        odd.sendall(b"\r\nx\r\nzz\r\n")
        assert read_all(odd).count(b"HTTP/1.1 ") == 1


def test_an_endless_head_is_answered_while_it_is_sent_and_then_closed(server):
    with connect(server) as endless, pytest.raises(OSError):
        endless.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: endless.recv(65536, socket.MSG_PEEK))
        endless.sendall(b"GET / HTTP/1.1\r\nX: ")
        while True:
            endless.sendall(LONG)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY, 426, "invalid_websocket"),
        (b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + VERSION, 400, "invalid_websocket"),
        (b"GET /v1/live HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: x\r\n" + UPGRADE + VERSION, 400, "invalid_websocket"),
        (b"POST /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION, 405, "method_not_allowed"),
        (b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION, 404, "not_found"),
        (b"GET /v1/live HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\n" + UPGRADE + KEY + VERSION, 403, "origin"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n", 400, "invalid_http"),
        (b"GET /a\0b HTTP/1.1\r\nHost: x\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: -1\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400, "invalid_http"),
    ],
)
def test_a_head_that_cannot_be_honoured_is_refused_in_openais_shape(server, head, status, code):
    answered, error = answer_to(server, head + b"\r\n")
    assert (answered, error["code"]) == (status, code)


def test_a_chunked_body_that_is_none_or_has_no_end_is_refused(bare):
    with listening(bare, body_s=0.5) as url:
        status, error = answer_to(url, CHUNKED + b"zz\r\n")
        assert (status, error["code"]) == (400, "invalid_http")
        status, error = answer_to(url, CHUNKED + b"1\r\n{\r\n")
        assert (status, error["code"]) == (408, "body_timeout")
        status, error = answer_to(url, CHUNKED + b"7fffffffffffffff\r\n{")
        assert (status, error["code"]) == (408, "body_timeout")


def test_what_comes_after_an_answer_keeps_no_connection_open(server, monkeypatch):
    monkeypatch.setattr(connection_module, "HEAD_S", 0.5)
    with connect(server) as late:
        late.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        wait_until(lambda: late.recv(65536, socket.MSG_PEEK))
        late.sendall(b"y")  # of the body
        assert read_all(late).startswith(b"HTTP/1.1 404 ")
    with connect(server) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: idle.recv(65536, socket.MSG_PEEK))
        idle.sendall(b"\r\n")  # which HTTP lets pass between two requests
        assert read_all(idle).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no such clock")
def test_a_client_that_takes_nothing_of_its_answer_is_dropped(server, monkeypatch):
    monkeypatch.setattr(connection_module, "UNREAD_S", 0.5)
    ends, lost = [], connection_module.TimedProtocol.connection_lost

    def note(protocol, error):
        ends.append(error)
        lost(protocol, error)

    monkeypatch.setattr(connection_module.TimedProtocol, "connection_lost", note)
    address, body = urlsplit(server), b'{"prompt": "x", "n": 10}'
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((address.hostname, address.port))
        deaf.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: any(isinstance(end, TimeoutError) for end in ends))


def test_pings_whose_pongs_are_not_read_end_the_connection(server):
    ping = b"\x89\xfd\0\0\0\0" + b"a" * 125
    with connect(server) as flood:
        flood.sendall(b"GET /v1/live HTTP/1.1\r\nHost: x\r\n" + UPGRADE + KEY + VERSION + b"\r\n")
        wait_until(lambda: flood.recv(65536, socket.MSG_PEEK))
        with pytest.raises(OSError):
            while True:
                flood.sendall(ping * 1000)
    with connect_live(server.replace("http", "ws") + "/v1/live") as connection:
        connection.send('{"prompt": "x"}')
        assert json.loads(connection.recv(30))["type"] == "frame"


def test_a_slow_body_is_ended_and_a_slow_head_closed(bare, monkeypatch):
    monkeypatch.setattr(connection_module, "HEAD_S", 1.0)
    with listening(bare, body_s=1.0) as url:
        with connect(url) as slow:
            slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 100\r\n\r\n{")
            answer = read_all(slow)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"
        with connect(url) as silent, connect(url) as dripping:
            dripping.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(3):
                time.sleep(0.1)
                dripping.sendall(b"y")
            assert read_all(dripping) == b""
            assert read_all(silent) == b""
        assert httpx2.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\0" * 100, b"G" * 70000])
def test_what_is_no_http_is_refused_in_openais_shape(server, data):
    with connect(server) as connection:
        connection.sendall(data + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_a_thousand_idle_sockets_keep_nobody_out(server):
    """In the serving process itself, so both ends count: 2000 sockets of the 1024 or more that are allowed."""
    server_module._allow_many_sockets()
    idle = [connect(server) for _ in range(1000)]
    try:
        start = time.monotonic()
        assert httpx2.post(server + GENERATIONS, json={"prompt": "x"}, timeout=20).status_code == 200
        assert time.monotonic() - start < 20
    finally:
        for connection in idle:
            connection.close()
    assert httpx2.get(f"{server}/healthz").status_code == 200


def test_many_bad_requests_at_once_leave_the_engine_working(server):
    statuses = []

    def send():
        with httpx2.Client() as client:
            for _ in range(20):
                statuses.append(client.post(server + GENERATIONS, content=b"{").status_code)
                statuses.append(client.post(server + EDITS, files={"image": b"x"}, data={"prompt": "x"}).status_code)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 320
    assert set(statuses) <= {400, 415}
    wait_until(lambda: httpx2.post(server + GENERATIONS, json={"prompt": "x"}).status_code == 200)
