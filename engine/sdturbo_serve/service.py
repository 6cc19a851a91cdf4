"""What every route shares: one pipeline with its worker, whether it may be trusted yet, and waiting for pictures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from sdturbo import Pipeline, SDTurboError
from sdturbo.golden import golden_distance
from sdturbo_serve import tracing
from sdturbo_serve.errors import ApiError, deadline_exceeded
from sdturbo_serve.metrics import Metrics
from sdturbo_serve.picture import Drawn, Picture
from sdturbo_serve.settings import Settings
from sdturbo_serve.worker import QueueFull, Worker

log = logging.getLogger("sdturbo.serve")


class ClientGone(ApiError):
    """The client closed its connection; the answer reaches nobody but the log."""

    def __init__(self) -> None:
        super().__init__(499, "The client went away.", code="client_closed_request")


class NotReady(SDTurboError):
    """The engine cannot be trusted with a request: it has drawn no golden picture, or its thread has ended."""


class Service:
    """not_ready: why no request is taken yet, None once the engine has drawn the bundle's golden picture."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.metrics = Metrics()
        self.worker = Worker(pipeline, settings.max_queue, self.metrics)
        self.not_ready: str | None = "The engine is warming up."
        self.started = int(time.time())
        self.open_streams = 0
        self._warm_up: asyncio.Task[None] | None = None

    @contextmanager
    def stream(self) -> Generator[None]:
        """Counts a live stream while it is open."""
        self.open_streams += 1
        self.metrics.live.inc()
        try:
            yield
        finally:
            self.open_streams -= 1
            self.metrics.live.dec()

    def start(self) -> None:
        """Start the engine's thread and, beside it, the warm-up."""
        self.worker.start()
        self._warm_up = asyncio.create_task(self.warm_up())

    async def stop(self) -> None:
        if self._warm_up is not None:
            self._warm_up.cancel()
        await asyncio.to_thread(self.worker.stop)

    async def check(self) -> None:
        """Wait for the warm-up. Raises NotReady."""
        if self._warm_up is not None:
            await asyncio.wait({self._warm_up})
        if self.not_ready is not None:
            raise NotReady(self.not_ready)
        if not self.worker.is_alive:
            raise NotReady("The engine's thread has ended.")

    async def warm_up(self) -> None:
        least = self.pipeline.bundle.golden.min_psnr
        try:
            distance = await asyncio.to_thread(golden_distance, self.pipeline)
        except (SDTurboError, OSError) as error:
            self.not_ready = f"The golden picture could not be drawn: {error}"
        else:
            self.not_ready = None
            if distance < least:
                self.not_ready = (
                    f"The engine draws the golden picture at {distance:.1f} dB, expected {least:.0f} dB or more:"
                    " its pictures cannot be trusted. Use another backend or precision, or build the bundle again."
                )
        if self.not_ready:
            log.error("not ready", extra={"fields": {"reason": self.not_ready}})
        else:
            log.info("ready", extra={"fields": {"bundle_id": self.pipeline.bundle.bundle_id}})

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Queue pictures. Raises ApiError: 503 before the engine is ready, 429 if there is no place."""
        if self.not_ready is not None:
            raise ApiError(503, self.not_ready, code="not_ready", headers={"Retry-After": "2"})
        try:
            self.worker.submit(pictures)
        except QueueFull as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise ApiError(429, str(error), code="queue_full", headers=headers) from error

    async def draw(self, pictures: Sequence[Picture], gone: Callable[[], Coroutine[Any, Any, None]]) -> list[Drawn]:
        """Queue pictures and wait for all of them; give them up at the deadline or when `gone` returns.

        Raises ApiError, and the engine's own errors.
        """
        self.submit(pictures)
        drawn = asyncio.create_task(all_drawn(pictures))
        left = asyncio.create_task(gone())
        try:
            with tracing.span("sdturbo.draw", pictures=len(pictures), steps=pictures[0].steps) as span:
                await asyncio.wait({drawn, left}, timeout=self.settings.deadline_s, return_when="FIRST_COMPLETED")
                if drawn.done():
                    found = drawn.result()
                    tracing.note(span, wait_ms=found[0].wait_ms, batch_size=found[0].batch_size, **found[0].timings_ms)
                    return found
            if left.done():
                raise ClientGone
            self.metrics.deadlines.inc()
            raise deadline_exceeded(self.settings.deadline_s)
        finally:
            drawn.cancel()
            left.cancel()
            for one in pictures:
                one.cancel()


async def all_drawn(pictures: Sequence[Picture]) -> list[Drawn]:
    return await asyncio.gather(*(asyncio.wrap_future(one.drawn) for one in pictures))
