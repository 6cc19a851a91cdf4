"""The queue in front of the engine, and the one thread that drives it.

Knows pictures and batches, not HTTP, formats or deadlines. To give a picture up, cancel its future.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from sdturbo import Cancelled, Pipeline, SDTurboError
from sdturbo_serve.batch import draw
from sdturbo_serve.metrics import Metrics
from sdturbo_serve.picture import DrawnPicture, QueuedPicture

log = logging.getLogger("sdturbo.serve")


class QueueFull(SDTurboError):
    """The queue has no room for so many pictures. retry_after: seconds until it probably has."""

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(f"{waiting} pictures of at most {limit} are waiting. Try again in {retry_after} s.")
        self.retry_after = retry_after


class EngineEnded(SDTurboError):
    """The engine's thread has ended, for example by SystemExit in a library. No more pictures are drawn."""

    def __init__(self) -> None:
        super().__init__("The engine's thread has ended. The server's log says why. Restart the server.")


class Worker:
    """Draws pictures in the order of arrival. Those that go together are drawn in the bundle's batch sizes.

    Batches form from the pictures that wait while the engine is busy. An idle engine starts at once.
    """

    def __init__(self, pipeline: Pipeline, max_queue: int, metrics: Metrics) -> None:
        self._pipeline = pipeline
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[QueuedPicture] = deque()
        self._reserved = 0  # pictures of the filter, which take places in the queue too
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._seconds_per_picture = 1.0  # a running average
        self._thread = threading.Thread(target=self._work, name="sdturbo-engine", daemon=True)
        metrics.queue.set_function(self.waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the current batch, give up the queue, end the thread."""
        with self._changed:
            self._stopping = True
            self._metrics.cancelled.labels("queue").inc(len(self._queue))
            _fail(self._queue, Cancelled("The server is stopping."))
            self._queue.clear()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, pictures: Sequence[QueuedPicture]) -> None:
        """Queue all of them or none. Raises QueueFull, EngineEnded, and Cancelled once the worker stops."""
        with self._changed:
            self._check_room(len(pictures))
            self._queue.extend(pictures)
            self._changed.notify()

    @contextmanager
    def reserved(self, count: int, *, checked: bool) -> Generator[None]:
        """Places in the queue that others cannot take meanwhile. checked: raise what `submit` raises, if there are too few."""
        with self._changed:
            if checked:
                self._check_room(count)
            self._reserved += count
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= count

    def _check_room(self, count: int) -> None:
        if self._stopping:
            raise Cancelled("The server is stopping.")
        if self._ended:
            raise EngineEnded
        self._drop_cancelled()
        waiting = len(self._queue) + self._reserved
        if waiting + count > self._max_queue:
            self._metrics.refused.inc(count)
            retry_after = math.ceil(max(1.0, waiting * self._seconds_per_picture))
            raise QueueFull(waiting, self._max_queue, retry_after)

    def swap(self, old: QueuedPicture, new: QueuedPicture) -> bool:
        """Let `new` take the place of `old` in the queue. False if the engine has begun with `old`."""
        with self._changed:
            if old not in self._queue:
                return False
            self._queue[self._queue.index(old)] = new
        old.drawn.cancel()
        return True

    def _work(self) -> None:
        batch: tuple[QueuedPicture, ...] = ()
        try:
            while batch := self._next_batch():
                try:
                    self._draw(batch)
                except Exception:  # the next batch gets its chance
                    log.exception("the engine's thread met an unexpected error")
                    _fail(batch, RuntimeError("The engine failed. The server's log says why."))
        except BaseException:  # such as SystemExit: the thread ends, and the waiting clients hear of it
            log.critical("the engine's thread has ended", exc_info=True)
            with self._changed:
                self._ended = True
                left = (*batch, *self._queue)
                self._queue.clear()
            _fail(left, EngineEnded())

    def _next_batch(self) -> tuple[QueuedPicture, ...]:
        """Wait for the next pictures that go together. Empty once the worker stops."""
        with self._changed:
            self._drop_cancelled()
            while not self._queue and not self._stopping:
                self._changed.wait()
                self._drop_cancelled()
            if self._stopping:
                return ()
            together = [queued for queued in self._queue if queued.goes_with(self._queue[0])]
            fitting = [size for size in self._pipeline.bundle.batch_sizes if size <= len(together)]
            batch = together[: max(fitting, default=len(together))]
            for queued in batch:
                self._queue.remove(queued)
            return tuple(batch)

    def _drop_cancelled(self) -> None:
        for queued in tuple(self._queue):
            if queued.drawn.cancelled():
                self._queue.remove(queued)
                self._metrics.cancelled.labels("queue").inc()

    def _draw(self, batch: tuple[QueuedPicture, ...]) -> None:
        start = time.perf_counter()
        try:
            result = draw(self._pipeline, batch)
        except Cancelled as error:
            _fail(batch, error)
            self._metrics.cancelled.labels("engine").inc(len(batch))
            return
        except SDTurboError as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:  # one bad picture must not spoil its neighbours
                for queued in batch:
                    self._draw((queued,))
            return
        seconds = time.perf_counter() - start
        self._seconds_per_picture += 0.2 * (seconds / len(batch) - self._seconds_per_picture)
        self._metrics.pictures.inc(len(batch))
        self._metrics.batches.observe(len(batch))
        for part, milliseconds in result.timings.items():
            if part != "total":
                self._metrics.stages.labels(part).observe(milliseconds / 1e3)
        for queued, picture, dropped in zip(batch, result.images, result.dropped, strict=True):
            wait = start - queued.arrived
            self._metrics.waits.observe(wait)
            if queued.drawn.set_running_or_notify_cancel():
                queued.drawn.set_result(DrawnPicture(picture, queued.seed, dropped, wait * 1e3, result))


def _fail(pictures: Iterable[QueuedPicture], error: Exception) -> None:
    for queued in pictures:
        if not queued.drawn.done() and queued.drawn.set_running_or_notify_cancel():
            queued.drawn.set_exception(error)
