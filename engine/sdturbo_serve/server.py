"""uvicorn around the application. It ends slow and idle connections, and SIGTERM lets accepted requests finish."""

from __future__ import annotations

import resource
import signal

import uvicorn
from fastapi import FastAPI

from sdturbo_serve.connection import LIVE_MESSAGE, LiveProtocol, TimedProtocol

KEEP_ALIVE_S = 30


def serve(app: FastAPI, *, host: str, port: int, drain_s: int) -> None:
    """Listen until SIGTERM or SIGINT, then finish the accepted requests within drain_s seconds.

    Returns after SIGTERM, and raises KeyboardInterrupt after SIGINT.
    """
    _allow_many_sockets()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
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
    uvicorn.Server(config).run()


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one, because idle sockets must not keep others out."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
