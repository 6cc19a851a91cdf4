"""The queue in front of the engine, and the one thread that drives it.

Knows pictures and batches. Does not know HTTP, formats or deadlines: who gives up cancels the picture.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from sdturbo import Cancelled, Pipeline, Request, SDTurboError
from sdturbo_serve.metrics import Metrics
from sdturbo_serve.picture import AllCancelled, Drawn, Picture

log = logging.getLogger("sdturbo.serve")


class QueueFull(SDTurboError):
    """No place for so many pictures now. retry_after: seconds until the queue has probably moved on."""

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(f"{waiting} pictures of at most {limit} are waiting; try again in {retry_after} s.")
        self.retry_after = retry_after


class EngineEnded(SDTurboError):
    """The engine's thread has met what it cannot go on from, such as SystemExit in a library; no picture is drawn any more."""

    def __init__(self) -> None:
        super().__init__("The engine's thread has ended; the server's log says why. It must be started anew.")


class Worker:
    """Draws pictures in the order of arrival, those that go together in the bundle's batch sizes.

    Batches form from what waits while the engine is busy; an idle engine starts at once, with what there is.
    """

    def __init__(self, pipeline: Pipeline, max_queue: int, metrics: Metrics) -> None:
        self._pipeline = pipeline
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[Picture] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._seconds_each = 1.0  # of a picture, averaged over the last ones
        self._thread = threading.Thread(target=self._work, name="sdturbo-engine", daemon=True)
        metrics.watch_queue(self.waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand, give up the queue, end the thread."""
        with self._changed:
            self._stopping = True
            for picture in self._queue:
                picture.cancel()
            self._drop_cancelled()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Queue all of them or none. Raises QueueFull, Cancelled once the worker stops, EngineEnded."""
        with self._changed:
            if self._stopping:
                raise Cancelled("The server is stopping.")
            if self._ended:
                raise EngineEnded
            self._drop_cancelled()
            if len(self._queue) + len(pictures) > self._max_queue:
                self._metrics.refused.inc(len(pictures))
                wait = math.ceil(max(1.0, len(self._queue) * self._seconds_each))
                raise QueueFull(len(self._queue), self._max_queue, wait)
            self._queue.extend(pictures)
            self._changed.notify()

    def swap(self, old: Picture, new: Picture) -> bool:
        """Let `new` take the place of `old` in the queue; False if the engine has begun with `old`."""
        with self._changed:
            if old not in self._queue:
                return False
            self._queue[self._queue.index(old)] = new
        old.cancel()
        _fail((old,), Cancelled("A newer request took its place."))
        return True

    def _work(self) -> None:
        batch: tuple[Picture, ...] = ()
        try:
            while batch := self._next_batch():
                try:
                    self._draw(batch)
                except Exception:  # whatever it was, the next batch gets its chance
                    log.exception("the engine's thread met an unexpected error")
                    _fail(batch, RuntimeError("The engine failed; the server's log says why."))
        except BaseException:  # SystemExit and the like: the thread ends, and whoever waits hears of it
            log.critical("the engine's thread has ended", exc_info=True)
            with self._changed:
                self._ended = True
                left = (*batch, *self._queue)
                self._queue.clear()
            _fail(left, EngineEnded())

    def _next_batch(self) -> tuple[Picture, ...]:
        """Wait for the next pictures that go together; empty once the worker stops."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._stopping:
                    return ()
                if self._queue:
                    break
                self._changed.wait()
            first = self._queue[0]
            together = [one for one in self._queue if one.goes_with(first)]
            size = max(
                (size for size in self._pipeline.bundle.batch_sizes if size <= len(together)), default=len(together)
            )
            for one in together[:size]:
                self._queue.remove(one)
            return tuple(together[:size])

    def _drop_cancelled(self) -> None:
        for one in [one for one in self._queue if one.is_cancelled]:
            self._queue.remove(one)
            _fail((one,), Cancelled("Given up while it waited."))
            self._metrics.cancelled.labels("queue").inc()

    def _draw(self, batch: tuple[Picture, ...]) -> None:
        start = time.perf_counter()
        request: Request = {
            "prompt": [one.prompt for one in batch],
            "image": batch[0].image,
            "strength": batch[0].strength,
            "num_inference_steps": batch[0].steps,
            "seed": [one.seed for one in batch],
            "cancel": AllCancelled(batch),
        }
        try:
            result = self._pipeline(**request)
        except Cancelled as error:
            _fail(batch, error)
            self._metrics.cancelled.labels("engine").inc(len(batch))
            return
        except SDTurboError as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for one in batch:  # one bad picture must not spoil its neighbours
                self._draw((one,))
            return
        seconds = time.perf_counter() - start
        self._seconds_each += 0.2 * (seconds / len(batch) - self._seconds_each)
        self._metrics.pictures.inc(len(batch))
        self._metrics.batches.observe(len(batch))
        for part, milliseconds in result.timings.items():
            if part != "total":
                self._metrics.stages.labels(part).observe(milliseconds / 1e3)
        for one, image, dropped in zip(batch, result.images, result.dropped, strict=True):
            wait = start - one.arrived
            self._metrics.waits.observe(wait)
            _settle(one, Drawn(image, one.seed, dropped, result.timings, wait * 1e3, len(batch)))


def _settle(picture: Picture, drawn: Drawn) -> None:
    if picture.drawn.set_running_or_notify_cancel():
        picture.drawn.set_result(drawn)


def _fail(batch: Sequence[Picture], error: Exception) -> None:
    for one in batch:
        if not one.drawn.done() and one.drawn.set_running_or_notify_cancel():
            one.drawn.set_exception(error)
