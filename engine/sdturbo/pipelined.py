"""Many requests, three stages at work at the same time: text n+1 ‖ denoise n ‖ decode n-1. Pictures a second, not latency.

A thread a stage, each taking the requests in order; a stage waits for the one before it to be done with the same request.
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
IN_FLIGHT = 4  # one in each stage, one that waits or that the caller looks at


def stream(
    requests: Iterable[Request],
    text: Callable[[Request, CancelToken], Job],
    denoise: Callable[[Job], Job],
    decode: Callable[[Job], Result],
) -> Generator[Result | SDTurboError]:
    """The outcome of each request, in order; see `Pipeline.stream`. text is given the token that the stream's end sets."""
    stop = threading.Event()
    outcomes: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(ThreadPoolExecutor(1, f"sdturbo-{name}")) for name in ("text", "denoise", "decode")
        )
        stack.callback(stop.set)  # before the threads are waited for
        for one in requests:
            embeds = first.submit(text, one, stop)
            latents = second.submit(_next, denoise, embeds)
            outcomes.append(third.submit(_next, decode, latents))
            if len(outcomes) == IN_FLIGHT:
                yield _outcome(outcomes.popleft())
        while outcomes:
            yield _outcome(outcomes.popleft())


def _next(stage: Callable[[Job], T], before: Future[Job]) -> T:
    """Raises what the stage before raised."""
    return stage(before.result())


def _outcome(future: Future[Result]) -> Result | SDTurboError:
    error = future.exception()
    return error if isinstance(error, SDTurboError) else future.result()
