"""Progress of a build: the part that runs, the number of parts, and the time that is left, roughly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """parts: name -> rough share of the time. Only the ratio of the shares counts. say: takes lines."""

    parts: Mapping[str, float]
    say: Callable[[str], None]
    _start: float = field(default_factory=time.monotonic)
    _done: float = 0.0
    _part_start: float = 0.0
    _count: int = 0
    _tenth: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Announce a part when it begins. Its share counts as done when it ends."""
        self._count += 1
        self._tenth = 0
        self._part_start = time.monotonic()
        elapsed, left = self._part_start - self._start, ""
        if self._done and elapsed >= 1:
            seconds = elapsed / self._done * (sum(self.parts.values()) - self._done)
            left = f"  ({elapsed:.0f} s so far, about {seconds:.0f} s left)"
        self.say(f"[{self._count}/{len(self.parts)}] {name}{left}")
        yield
        self._done += self.parts[name]

    def share(self, done: float) -> None:
        """Say at every new tenth how much of the current part is done, 0 to 1, and how long its rest takes.

        Called from any thread. What is behind an earlier share is not said.
        """
        with self._lock:
            tenth = min(int(done * 10), 10)
            if tenth > self._tenth:
                self._tenth = tenth
                left = (time.monotonic() - self._part_start) / done * max(0.0, 1 - done)
                self.say(f"      {tenth * 10} %, the rest in about {left:.0f} s")
