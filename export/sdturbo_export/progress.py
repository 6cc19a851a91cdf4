"""Progress of a build: which part runs, which come, and about how long is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """`parts` are (name, weight): the weights are rough shares of the time, and only their ratio counts."""

    parts: Sequence[tuple[str, float]]
    say: Callable[[str], None]
    _start: float = field(default_factory=time.monotonic)
    _done: float = 0.0
    _part_start: float = 0.0
    _count: int = 0
    _tenth: int = 0

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Announce a part when it begins; its weight counts as done when it ends."""
        self._count += 1
        self._tenth = 0
        self._part_start = time.monotonic()
        self.say(f"[{self._count}/{len(self.parts)}] {name}{self._left()}")
        yield
        self._done += dict(self.parts)[name]

    def share(self, done: float) -> None:
        """Say how much of the current part is done, 0 to 1, at every new tenth, and how long the rest of it takes."""
        if int(done * 10) > self._tenth:
            self._tenth = int(done * 10)
            left = (time.monotonic() - self._part_start) / done * (1 - done)
            self.say(f"      {self._tenth * 10} %, the rest in about {left:.0f} s")

    def _left(self) -> str:
        total = sum(weight for _, weight in self.parts)
        elapsed = time.monotonic() - self._start
        if not self._done or elapsed < 1:
            return ""
        return f"  ({elapsed:.0f} s so far, about {elapsed / self._done * (total - self._done):.0f} s left)"
