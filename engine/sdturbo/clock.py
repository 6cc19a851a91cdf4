"""The time of a request's parts, and the points where the request may be cancelled."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sdturbo.errors import Cancelled


class CancelToken(Protocol):
    """Anything with `is_set`, such as `threading.Event`."""

    def is_set(self) -> bool: ...


@dataclass(slots=True)
class Clock:
    """Milliseconds per part of a request, summed. Cancellation is honoured before each part."""

    cancel: CancelToken | None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"Cancelled before {name}. No picture was made.")
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def stop(self) -> dict[str, float]:
        return {**self.timings, "total": (time.perf_counter() - self.start) * 1e3}


@dataclass(frozen=True, slots=True)
class Either:
    """A token that is set when one of two is. The second may be missing."""

    first: CancelToken
    second: CancelToken | None

    def is_set(self) -> bool:
        return self.first.is_set() or (self.second is not None and self.second.is_set())
