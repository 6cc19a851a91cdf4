"""Servers around a pipeline, and an engine that can be held back."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2
import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from sdturbo import Pipeline
from sdturbo.image.mask import SOFT_EDGE
from sdturbo_serve import Settings, create_app
from sdturbo_serve.connection import LIVE_MESSAGE, LiveProtocol, TimedProtocol

BACKEND = "onnxruntime"
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def load(bundle):
    """The pipeline on one thread: the graphs are tiny, and thread pools cost more than they bring."""
    return Pipeline.load(bundle, BACKEND, num_threads=1)


class Gate:
    """Lets a pipeline's denoiser pass only while it is open; counts how often the pipeline was called, and with what."""

    def __init__(self, pipeline):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches = []
        self.open.set()
        for (name, batch_size, size), session in pipeline._sessions.items():
            if name == "denoiser":
                pipeline._sessions[name, batch_size, size] = self._session(session, batch_size)

    def _session(self, session, batch_size):
        class Gated:
            def run(_, inputs):
                self.batches.append(batch_size)
                self.entered.release()
                assert self.open.wait(30)
                return session.run(inputs)

        return Gated()

    def shut(self):
        self.open.clear()
        self.batches.clear()
        while self.entered.acquire(blocking=False):
            pass

    def wait_for_entry(self):
        assert self.entered.acquire(timeout=10), "the engine was not called"


@contextmanager
def client_of(pipeline, *, credentials=None, filter=None, **settings):
    """A client in process, once the server is ready."""
    app = create_app(pipeline, Settings(**settings), credentials=credentials, filter=filter)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@contextmanager
def listening(pipeline, *, credentials=None, filter=None, **settings):
    """The address of a real server on a free loopback port, in a thread of this process."""
    config = uvicorn.Config(
        create_app(pipeline, Settings(**settings), credentials=credentials, filter=filter),
        port=0,
        http=TimedProtocol,
        ws=LiveProtocol,
        ws_max_size=LIVE_MESSAGE,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,  # a connection that a test left open must not hold up the others
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def command(bundle, *arguments, **environment):
    """The command `sdturbo-serve` as a process: (process, address), once it is ready; killed at the end."""
    port = free_port()
    line = [
        sys.executable,
        "-m",
        "sdturbo_serve",
        "--bundle",
        bundle,
        "--port",
        port,
        "--backend",
        BACKEND,
        "--threads",
        1,
        *arguments,
    ]
    process = subprocess.Popen(
        [str(word) for word in line], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def png(width=64, height=64, colour=(200, 30, 10)):
    """The bytes of a PNG file of one colour."""
    return png_of(Image.new("RGB", (width, height), colour))


def png_of(picture):
    """The bytes of a PNG file of a PIL image or an array."""
    file = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(file, "PNG")
    return file.getvalue()


def start_and_mask():
    """(start, mask): a start picture without equal neighbours, (64, 64, 3), and a mask of its left quarter, RGBA (32, 32, 4).

    The masked pixels are transparent. The others are black and white, which must not count.
    """
    rng = np.random.default_rng(5)
    mask = rng.choice([0, 255], (32, 32, 1)).astype(np.uint8).repeat(4, axis=2)
    mask[..., 3] = 255
    mask[:, :8, 3] = 0
    return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), mask


def only_the_left_quarter_changed(picture, start):
    """Whether a picture differs from its start picture in the mask of `start_and_mask`, and not beyond its soft edge."""
    return (picture[:, :16] != start[:, :16]).any(axis=2).mean() > 0.9 and np.array_equal(
        picture[:, 16 + SOFT_EDGE :], start[:, 16 + SOFT_EDGE :]
    )
