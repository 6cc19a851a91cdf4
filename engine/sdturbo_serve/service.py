"""The service that all routes share: one pipeline, its worker and its readiness."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request as HttpRequest
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import HTTPConnection

from sdturbo import InvalidRequest, Pipeline, SDTurboError
from sdturbo.bundle.description import Size
from sdturbo.errors import SigningFailed
from sdturbo.golden import golden_distance
from sdturbo.image import ContentCredentials, Mask
from sdturbo.request import Filter
from sdturbo.result import origin
from sdturbo_serve import tracing
from sdturbo_serve.encoding import Format, encode
from sdturbo_serve.errors import ApiError, deadline_exceeded
from sdturbo_serve.filtering import FilterThreads
from sdturbo_serve.links import open_links
from sdturbo_serve.metrics import Metrics
from sdturbo_serve.picture import DrawnPicture, QueuedPicture, size_text
from sdturbo_serve.settings import Settings
from sdturbo_serve.start_image import decode_start
from sdturbo_serve.worker import QueueFull, Worker

log = logging.getLogger("sdturbo.serve")

ENDS_SOON = timedelta(days=14)


class NotReady(SDTurboError):
    """The engine cannot be trusted. Its golden picture is missing or wrong, or its thread has ended."""


class Service:
    """not_ready: the reason to refuse requests, or None once the engine has drawn the bundle's golden picture."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        credentials: ContentCredentials | None = None,
        filter: Filter | None = None,
    ) -> None:
        if pipeline.has_filter:
            raise InvalidRequest(
                "Got a pipeline with a filter of its own, which would judge the golden picture and hold up the engine. Load the"
                " pipeline without a filter, and give the filter to create_app."
            )
        self.pipeline = pipeline
        self.settings = settings
        self._credentials = credentials
        self._filter = None if filter is None else FilterThreads(filter)
        self.links = open_links(settings)
        self.metrics = Metrics()
        self.metrics.lost_recordings.set_function(lambda: len(pipeline.lost_recordings))
        self.worker = Worker(pipeline, settings.max_queue, self.metrics)
        self.not_ready: str | None = "The engine is warming up."
        self.started = int(time.time())
        self.open_connections = 0
        self.metrics.live.set_function(lambda: self.open_connections)
        self._warm_up: asyncio.Task[None] | None = None

    @contextmanager
    def live_connection(self) -> Generator[None]:
        """Count a live connection while it is open."""
        self.open_connections += 1
        try:
            yield
        finally:
            self.open_connections -= 1

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start the engine's thread and, beside it, the warm-up. At the end give up the queue and end the thread."""
        self.worker.start()
        if self._credentials is not None:
            _warn_of_the_end(self._credentials)
        self._warm_up = asyncio.create_task(self._draw_golden_picture())
        yield
        self._warm_up.cancel()
        if self._filter is not None:
            self._filter.stop()
        await asyncio.to_thread(self.worker.stop)

    @property
    def unready(self) -> str | None:
        """The reason why no requests should come now, or None."""
        if self.not_ready is not None:
            return self.not_ready
        return None if self.worker.is_alive else "The engine's thread has ended."

    async def check(self) -> None:
        """Wait for the warm-up. Raises NotReady."""
        if self._warm_up is not None:
            await asyncio.wait({self._warm_up})
        if (reason := self.unready) is not None:
            raise NotReady(reason)

    async def _draw_golden_picture(self) -> None:
        least = self.pipeline.bundle.golden.min_psnr
        try:
            distance = await asyncio.to_thread(golden_distance, self.pipeline)
        except (SDTurboError, OSError) as error:
            self.not_ready = f"The golden picture could not be drawn: {error}"
        else:
            self.not_ready = None
            if distance < least:
                self.not_ready = (
                    f"The engine draws the golden picture at {distance:.1f} dB. Expected {least:.0f} dB or more. Its"
                    " pictures cannot be trusted. Use another backend or precision, or build the bundle again."
                )
        if self.not_ready:
            log.error("not ready", extra={"fields": {"reason": self.not_ready}})
        else:
            log.info("ready", extra={"fields": {"bundle_id": self.pipeline.bundle.bundle_id}})

    async def start_image(self, image: bytes, mask: bytes | None, size: Size) -> tuple[NDArray[np.uint8], Mask | None]:
        """(pixels, mask) of the files of a start image and its mask, as `decode_start` says. Raises ApiError."""
        return await asyncio.to_thread(decode_start, image, mask, size, self.settings.max_image_pixels)

    def size_of(self, text: str | None) -> Size:
        """(height, width) of the size that a request asks for, `768x512` (width x height). Left out or "auto": the default.

        Raises ApiError, with the sizes that there are.
        """
        sizes = {size_text(size): size for size in self.pipeline.bundle.sizes}
        if text in (None, "auto"):
            return self.pipeline.bundle.sizes[0]
        if text not in sizes:
            message = f"Got size {text!r}. Expected {', '.join(map(repr, sizes))} or 'auto'."
            raise ApiError(400, message, param="size", code="invalid_value")
        return sizes[text]

    def end_of_request(self) -> float:
        """The deadline of a request that begins now, in seconds of `time.monotonic`. Filter and engine share the time to it."""
        return time.monotonic() + self.settings.deadline_s

    def late(self) -> ApiError:
        """The error of a request whose deadline has passed, counted."""
        self.metrics.deadlines.inc()
        return deadline_exceeded(self.settings.deadline_s)

    def submit(self, pictures: Sequence[QueuedPicture]) -> None:
        """Queue pictures. Raises ApiError: 503 before the engine is ready, 429 if the queue has no room for them."""
        with self._admitting():
            self.worker.submit(pictures)

    @contextmanager
    def _admitting(self) -> Generator[None]:
        """The worker's refusals as answers, and 503 before the engine is ready."""
        if self.not_ready is not None:
            raise ApiError(503, self.not_ready, code="not_ready", headers={"Retry-After": "2"})
        try:
            yield
        except QueueFull as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise ApiError(429, str(error), code="queue_full", headers=headers) from error

    async def pass_prompts(self, pictures: Sequence[QueuedPicture], end: float, *, placed: bool = False) -> None:
        """Ask the operator's filter, before anything is drawn. The pictures' places in the queue are kept meanwhile.

        placed: they are to take places that the client has in the queue, and need no further ones.
        Raises Refused, FilterFailed, and ApiError: that of `submit` before the filter is asked, and 504 at the end.
        """
        if self._filter is None:
            return
        prompts = dict.fromkeys(text for queued in pictures for text in queued.prompts)
        with self._admitting(), self.worker.reserved(0 if placed else len(pictures), checked=not placed):
            try:
                await self._filter.pass_prompts(prompts, end)
            except TimeoutError as error:
                raise self.late() from error
        for queued in pictures:
            queued.arrived = time.perf_counter()  # the wait in the queue begins now

    async def _pass_pictures(self, drawn: Sequence[DrawnPicture], end: float) -> None:
        """Show the filter copies without `info`, as the runtime does. They count as waiting until it has judged them."""
        if self._filter is None:
            return
        copies = (Image.fromarray(np.asarray(each.picture)) for each in drawn)
        with self.worker.reserved(len(drawn), checked=False):
            try:
                await self._filter.pass_pictures(copies, end)
            except TimeoutError as error:
                raise self.late() from error

    async def draw(self, pictures: Sequence[QueuedPicture], request: HttpRequest, end: float) -> list[DrawnPicture]:
        """Queue pictures and wait for all of them. They are given up at the end, or when the client disconnects.

        end: of the request, as `end_of_request` says. Raises ApiError, and the errors of the engine and of the filter.
        """
        await self.pass_prompts(pictures, end)
        self.submit(pictures)
        drawing = asyncio.create_task(_all_drawn(pictures))
        leaving = asyncio.create_task(_disconnected(request))
        try:
            with tracing.span("sdturbo.draw", pictures=len(pictures), steps=pictures[0].steps) as span:
                left = end - time.monotonic()
                await asyncio.wait({drawing, leaving}, timeout=left, return_when="FIRST_COMPLETED")
                if drawing.done():
                    drawn = drawing.result()
                    first = drawn[0]
                    batch_size = len(first.batch.images)
                    tracing.note(span, wait_ms=first.wait_ms, batch_size=batch_size, **first.batch.timings)
                    return drawn
            if leaving.done():
                raise ApiError(499, "The client went away.", code="client_closed_request")  # for the log alone
            raise self.late()
        finally:
            drawing.cancel()
            leaving.cancel()
            for queued in pictures:
                queued.drawn.cancel()

    async def encode(
        self, drawn: Sequence[DrawnPicture], output_format: Format, end: float, quality: int | None = None
    ) -> tuple[list[bytes], dict[str, Any]]:
        """(files, `schemas.Report`) of a request's pictures, signed if the server signs. quality: 0 to 100, for JPEG and WebP.

        Raises Refused, FilterFailed and ApiError if the filter does not let all of them pass until `end`, and SigningFailed.
        """
        await self._pass_pictures(drawn, end)
        start = time.perf_counter()
        write = partial(encode, metadata=self.settings.metadata, credentials=self._credentials)
        try:
            files = [await asyncio.to_thread(write, each.picture, output_format, quality) for each in drawn]
        except SigningFailed as error:
            log.error("a picture could not be signed", extra={"fields": {"reason": str(error)}})
            raise
        seconds = time.perf_counter() - start
        self.metrics.encoding.labels(output_format).observe(seconds / len(files))
        slowest = max((each.batch for each in drawn), key=lambda batch: batch.timings["total"])
        report = {
            **origin(self.pipeline.bundle, self.pipeline.backend),
            "lost_recordings": slowest.lost_recordings,
            "steps": slowest.num_inference_steps,
            "strength": slowest.strength,
            "timings_ms": {part: round(ms, 3) for part, ms in slowest.timings.items()},
            "wait_ms": round(max(each.wait_ms for each in drawn), 3),
            "encode_ms": round(seconds * 1e3, 3),
            "batch_size": len(slowest.images),
            "dropped": drawn[0].dropped,
        }
        return files, report


def _warn_of_the_end(credentials: ContentCredentials) -> None:
    """Log a warning if the certificate ends soon. No picture is given from then on."""
    if credentials.valid_until - datetime.now(UTC) < ENDS_SOON:
        fields = {"valid_until": f"{credentials.valid_until:%Y-%m-%d %H:%M} UTC"}
        log.warning("the certificate ends soon, and no picture is given from then on", extra={"fields": fields})


async def _disconnected(request: HttpRequest) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _all_drawn(pictures: Sequence[QueuedPicture]) -> list[DrawnPicture]:
    """The drawn pictures of a request, once all are drawn. Raises the first error among them."""
    return await asyncio.gather(*(asyncio.wrap_future(queued.drawn) for queued in pictures))


def service_of(connection: HTTPConnection) -> Service:
    """The service of the application that a request or a WebSocket has reached."""
    return connection.app.state.service
