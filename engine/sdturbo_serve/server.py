"""uvicorn around the application: slow and idle connections end, and SIGTERM lets accepted requests finish."""

from __future__ import annotations

import resource
import signal
from typing import Any

import uvicorn
from fastapi import FastAPI

from sdturbo_serve.connection import LIVE_MESSAGE, LiveProtocol, TimedProtocol

KEEP_ALIVE_S = 30


def serve(app: FastAPI, *, host: str, port: int, drain_s: int) -> None:
    """Listen until SIGTERM or SIGINT, then finish what was accepted within drain_s seconds.

    Returns after SIGTERM; raises KeyboardInterrupt after SIGINT.
    """
    _allow_many_sockets()
    options: dict[str, Any] = {
        "http": TimedProtocol,
        "ws": LiveProtocol,
        "ws_max_size": LIVE_MESSAGE,
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
