"""uvicorn around the application. It ends slow and idle connections, and SIGTERM lets accepted requests finish."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from sdturbo.errors import SDTurboError
from sdturbo_serve.connection import LIVE_MESSAGE, LiveProtocol, TimedProtocol
from sdturbo_serve.names import url_of

log = logging.getLogger("sdturbo.serve")

KEEP_ALIVE_S = 30
BACKLOG = 2048  # connections that wait to be accepted, as many as uvicorn's own


class CannotListen(SDTurboError):
    """A host and port on which this program cannot listen."""

    exit_code = 6


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of `host`, which `serve` then listens on. Until then connections are refused.

    Raises CannotListen. So a port in use is known before a model is loaded.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"Got --host {host}, which has no address: {reason}. Expected an address of this machine, such as 127.0.0.1."
        raise CannotListen(text) from error
    sockets: list[socket.socket] = []
    refusal: OSError | None = None
    for family, *_, address in dict.fromkeys(addresses):
        try:
            sockets.append(_bound(family, address))
        except OSError as error:
            refusal = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # localhost may name an IPv6 that is off
                break
    else:
        if sockets:
            return sockets
    for bound in sockets:
        bound.close()
    raise _cannot_listen(host, port, refusal) from refusal


def serve(app: FastAPI, sockets: Sequence[socket.socket], *, drain_s: int) -> None:
    """Listen on bound sockets until SIGTERM or SIGINT, then finish the accepted requests within drain_s seconds.

    Returns after SIGTERM, and raises KeyboardInterrupt after SIGINT. Raises CannotListen.
    """
    _allow_many_sockets()
    for bound in sockets:
        try:
            bound.listen(BACKLOG)
        except OSError as error:  # another program was bound to the port too, and began to listen first
            host, port, *_ = bound.getsockname()
            raise _cannot_listen(host, port, error) from error
    urls = [url_of(bound.getsockname()) for bound in sockets]
    log.info("listening", extra={"fields": {"urls": urls}})
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws=LiveProtocol,
        ws_max_size=LIVE_MESSAGE,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
        access_log=False,
        log_config=None,
        server_header=False,
    )
    # uvicorn raises the signal again after draining, and the process must then end with status 0
    signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
    uvicorn.Server(config).run(sockets=list(sockets))


def _bound(family: int, address: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # where SO_REUSEADDR would share the port with a program that has it
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # a server that ended a second ago holds nobody up
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _cannot_listen(host: str, port: int, error: OSError | None) -> CannotListen:
    reasons = {
        errno.EADDRINUSE: f"Port {port} of {host} is in use by another program. End it, or choose another --port.",
        errno.EACCES: f"This user may not listen on port {port}. Choose a --port from 1024 up.",
        errno.EADDRNOTAVAIL: f"This machine has no address {host}. Give one of its own as --host, or 0.0.0.0 for all.",
    }
    number = error.errno if error else None
    return CannotListen(reasons.get(number or 0, f"Cannot listen on port {port} of {host}: {error}."))


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one, because idle sockets must not keep others out."""
    if sys.platform == "win32":  # it has no such limit
        return
    import resource

    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
