"""Many requests, three stages at work at the same time: text n+1 ‖ denoise n ‖ decode n-1. Pictures a second, not latency.

A thread a stage, each taking the requests in order; a stage waits for the one before it to be done with the same request.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar, cast

from sdturbo.clock import Either
from sdturbo.errors import InvalidRequest, SDTurboError
from sdturbo.request import Job, Request, check_cancel
from sdturbo.result import Result

T = TypeVar("T")
IN_FLIGHT = 4  # one in each stage, one that waits or that the caller looks at


def stream(
    requests: Iterable[Request],
    text: Callable[[Request], Job],
    denoise: Callable[[Job], Job],
    decode: Callable[[Job], Result],
) -> Generator[Result | SDTurboError]:
    """The outcome of each request, in order; see `Pipeline.stream`."""
    stop = threading.Event()
    outcomes: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(ThreadPoolExecutor(1, f"sdturbo-{name}")) for name in ("text", "denoise", "decode")
        )
        stack.callback(stop.set)  # before the threads are waited for
        for one in requests:
            embeds = first.submit(_first, text, one, stop)
            latents = second.submit(_next, denoise, embeds)
            outcomes.append(third.submit(_next, decode, latents))
            if len(outcomes) == IN_FLIGHT:
                yield _outcome(outcomes.popleft())
        while outcomes:
            yield _outcome(outcomes.popleft())


def _first(text: Callable[[Request], Job], given: Request, stop: threading.Event) -> Job:
    return text(_stoppable(given, stop))


def _next(stage: Callable[[Job], T], before: Future[Job]) -> T:
    """Raises what the stage before raised."""
    return stage(before.result())


def _stoppable(given: Request, stop: threading.Event) -> Request:
    """The request with a token that the stream's end sets too."""
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"Got a request of type {type(given).__name__}; expected a call's arguments by name.")
    known = Request.__annotations__
    options = cast("Mapping[Any, Any]", given)
    if unknown := [name for name in options if name not in known]:
        raise InvalidRequest(f"Got a request with {unknown!r:.80}; expected names of {', '.join(known)}.")
    if "prompt" not in options:
        raise InvalidRequest("Got a request without a prompt.")
    cancel = given.get("cancel")
    check_cancel(cancel)
    return {**given, "cancel": stop if cancel is None else Either(stop, cancel)}


def _outcome(future: Future[Result]) -> Result | SDTurboError:
    error = future.exception()
    return error if isinstance(error, SDTurboError) else future.result()
