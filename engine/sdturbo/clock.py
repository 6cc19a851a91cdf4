"""Where a request's time goes, and where it may be stopped."""

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
    """Milliseconds a part, summed; honours cancellation before each part."""

    cancel: CancelToken | None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"Cancelled before {name}; no picture was made.")
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def also_stopped_by(self, cancel: CancelToken) -> None:
        """Honour one more token."""
        self.cancel = cancel if self.cancel is None else Either(cancel, self.cancel)

    def stop(self) -> dict[str, float]:
        return {**self.timings, "total": (time.perf_counter() - self.start) * 1e3}


@dataclass(frozen=True, slots=True)
class Either:
    """Set when one of two tokens is."""

    first: CancelToken
    second: CancelToken

    def is_set(self) -> bool:
        return self.first.is_set() or self.second.is_set()
