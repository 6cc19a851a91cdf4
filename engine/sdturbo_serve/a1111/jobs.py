"""The requests that are being drawn, for /progress and /interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request as HttpRequest

from sdturbo_serve.picture import DrawnPicture, QueuedPicture
from sdturbo_serve.service import Service


@dataclass(eq=False, slots=True)
class Job:
    """One request. interrupted: set once its client, or another one, has asked for that."""

    pictures: Sequence[QueuedPicture]
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def drawn(self) -> list[DrawnPicture]:
        """The pictures that are there, in their order."""
        done = (queued.drawn for queued in self.pictures if queued.drawn.done() and not queued.drawn.cancelled())
        return [future.result() for future in done if future.exception() is None]


class Jobs:
    """The requests under way, the oldest first."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    @property
    def current(self) -> Job | None:
        return self._jobs[0] if self._jobs else None

    def __len__(self) -> int:
        return len(self._jobs)

    async def draw(self, service: Service, pictures: Sequence[QueuedPicture], request: HttpRequest, end: float) -> Job:
        """Draw pictures, or those that are there when the job is interrupted. Raises what `Service.draw` raises."""
        job = Job(pictures)
        with self._under_way(job):
            drawing = asyncio.create_task(service.draw(pictures, request, end))
            interrupted = asyncio.create_task(job.interrupted.wait())
            try:
                await asyncio.wait({drawing, interrupted}, return_when="FIRST_COMPLETED")
                if drawing.done():
                    drawing.result()
            finally:
                interrupted.cancel()
                drawing.cancel()
                await asyncio.wait({drawing})  # it gives up the pictures that are left
        return job

    @contextmanager
    def _under_way(self, job: Job) -> Generator[None]:
        self._jobs.append(job)
        try:
            yield
        finally:
            self._jobs.remove(job)
