"""The operator's filter in the server: found by its name, and asked on threads of its own, so that the engine does not wait."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from PIL import Image

from sdturbo.errors import FilterFailed, InvalidRequest, SDTurboError
from sdturbo.request import Filter, check_filter, pass_pictures, pass_prompts

T = TypeVar("T")
THREADS = 8  # requests that are looked at together

log = logging.getLogger("sdturbo.serve")


def load_filter(name: str) -> Filter:
    """The filter `package.module:name`: an object with the two methods of `Filter`, or a class or function that makes one.

    Modules are looked for where Python finds them, and then in the current directory. Raises InvalidRequest.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidRequest(f"Got --filter {name!r}. Expected package.module:name.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        if isinstance(found, type) or not hasattr(found, "check_prompt"):
            found = found()
    except (Exception, SystemExit) as error:  # the operator's code may raise anything
        raise InvalidRequest(f"Cannot load the filter {name!r}: {type(error).__name__}: {error}.") from error
    check_filter(found)
    return cast(Filter, found)


class FilterThreads:
    """A filter with its threads.

    The threads are daemons, which those of an executor are not. So a filter that hangs does not hold up the end of the server.
    """

    def __init__(self, filter: Filter) -> None:
        self._filter = filter
        self._questions: deque[tuple[Future[None], Callable[[], None]]] = deque()  # that no thread has taken yet
        self._changed = threading.Condition()
        self._stopping = False
        for number in range(THREADS):
            threading.Thread(target=self._answer, name=f"sdturbo-filter-{number}", daemon=True).start()

    async def pass_prompts(self, prompts: Iterable[str], end: float) -> None:
        """Returns if all pass. end: seconds of `time.monotonic`. Raises Refused, FilterFailed, and TimeoutError at the end."""
        await self._ask(pass_prompts, prompts, end)

    async def pass_pictures(self, pictures: Iterable[Image.Image], end: float) -> None:
        """As `pass_prompts`."""
        await self._ask(pass_pictures, pictures, end)

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    async def _ask(self, question: Callable[[Filter, Iterable[T]], None], subjects: Iterable[T], end: float) -> None:
        verdict: Future[None] = Future()
        asked = verdict, partial(question, self._filter, subjects)
        with self._changed:
            self._questions.append(asked)
            self._changed.notify()
        try:
            await asyncio.wait_for(asyncio.wrap_future(verdict), end - time.monotonic())
        except FilterFailed as error:
            _tell(error)
            raise
        finally:
            with self._changed:
                if asked in self._questions:  # they must not pile up while all threads hang
                    self._questions.remove(asked)

    def _next(self) -> tuple[Future[None], Callable[[], None]] | None:
        """Wait for a question. None at the end of the server."""
        with self._changed:
            while not self._questions and not self._stopping:
                self._changed.wait()
            return self._questions.popleft() if self._questions else None

    def _answer(self) -> None:
        while (asked := self._next()) is not None:
            verdict, question = asked
            if not verdict.set_running_or_notify_cancel():  # the deadline has passed
                continue
            try:
                question()
            except SDTurboError as error:
                verdict.set_exception(error)
            except BaseException as error:  # the thread must not end, for then nobody answers the next questions
                failed = FilterFailed(f"The filter raised {type(error).__name__}, so the request was refused.")
                failed.__cause__ = error
                verdict.set_exception(failed)
            else:
                verdict.set_result(None)


def _tell(error: FilterFailed) -> None:
    """Log the place of the fault. Its own text stays out, because it may repeat a prompt."""
    fields = {"reason": str(error)}
    if cause := error.__cause__:
        last = traceback.extract_tb(cause.__traceback__)[-1]
        fields["at"] = f"{last.filename}:{last.lineno}, {last.name}"
    log.error("the filter failed", extra={"fields": fields})
