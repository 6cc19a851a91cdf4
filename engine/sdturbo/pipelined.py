"""Many requests, with three stages at work at the same time: text n+1 ‖ denoise n ‖ decode n-1. For throughput, not latency.

One thread per stage takes the requests in order. A stage waits until the one before it is done with the same request.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from sdturbo.clock import CancelToken
from sdturbo.errors import SDTurboError
from sdturbo.request import Job, Request
from sdturbo.result import Result

T = TypeVar("T")
IN_FLIGHT = 4  # one per stage, and one that waits or that the caller looks at


def stream(
    requests: Iterable[Request],
    start: Callable[[Request, CancelToken], Job],
    encode_text: Callable[[Job], Job],
    denoise: Callable[[Job], Job],
    decode: Callable[[Job], Result],
) -> Generator[Result | SDTurboError]:
    """The outcome of each request, in order, as `Pipeline.stream` promises.

    start: takes the token that is set at the stream's end. It shares a thread with `encode_text`.
    """
    stop = threading.Event()
    outcomes: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(ThreadPoolExecutor(1, f"sdturbo-{name}")) for name in ("text", "denoise", "decode")
        )
        stack.callback(stop.set)  # before the threads are waited for
        for request in requests:
            started = first.submit(start, request, stop)
            encoded = first.submit(_after, started, encode_text)
            denoised = second.submit(_after, encoded, denoise)
            outcomes.append(third.submit(_after, denoised, decode))
            if len(outcomes) == IN_FLIGHT:
                yield _outcome(outcomes.popleft())
        while outcomes:
            yield _outcome(outcomes.popleft())


def _after(job: Future[Job], stage: Callable[[Job], T]) -> T:
    """Run the stage on the job. Raises the error of the stage before."""
    return stage(job.result())


def _outcome(future: Future[Result]) -> Result | SDTurboError:
    error = future.exception()
    return error if isinstance(error, SDTurboError) else future.result()
