"""Lines of a report on a GPU, written as they come: a run that is killed leaves what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdturbo.backends import BackendChoice
from sdturbo.files import atomic_write

NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True, slots=True)
class Line:
    """One check. ok None: neither pass nor fail, for a figure without a limit or one that needs a GPU."""

    what: str
    measured: str
    expected: str = ""
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "    "}[self.ok]
        return f"{verdict}  {self.what:<44} {self.measured}{f'  ({self.expected})' if self.expected else ''}"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run, and where. backend, device: ("null", "null:0") in a dry run. runs: timed. soak: requests."""

    backend: str
    device: str
    dry: bool
    runs: int
    soak: int

    @property
    def choice(self) -> BackendChoice:
        return BackendChoice(self.backend, self.device)

    @property
    def index(self) -> int:
        """Of the GPU."""
        return int(self.device.partition(":")[2] or 0)

    def verdict(self, ok: bool) -> bool | None:
        """A figure's verdict. In a dry run it has none."""
        return None if self.dry else bool(ok)

    def figure(self, text: str) -> str:
        return NEEDS_GPU if self.dry else text


def guarded(name: str, part: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a part. An exception of any kind ends the part in a line that failed, with its words."""
    try:
        yield from part()
    except Exception as error:
        words = " ".join(str(error).split()) or "it gives no reason"
        yield Line(name, f"{type(error).__name__}: {words}", "no error", False)


@dataclass(slots=True)
class Report:
    """The lines so far: printed, and kept in report.txt and report.json of `folder`. about: more keys of the JSON document."""

    folder: Path
    about: dict[str, Any]
    lines: list[Line] = field(default_factory=list[Line])

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(finished=False)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(line, flush=True)
        self._write(finished=False)

    def end(self) -> int:
        """Write the verdict, print the document as one line. Returns the command's exit code."""
        print(self.verdict)
        print(json.dumps(self._write(finished=True)))
        return 1 if self.failed else 0

    @property
    def failed(self) -> int:
        return sum(line.ok is False for line in self.lines)

    @property
    def verdict(self) -> str:
        passed = sum(line.ok is True for line in self.lines)
        return f"{self.failed} lines failed, {passed} passed, {sum(x.measured == NEEDS_GPU for x in self.lines)} need a GPU"

    def _write(self, *, finished: bool) -> dict[str, Any]:
        document = {
            **self.about,
            "finished": finished,
            "verdict": self.verdict,
            "lines": [asdict(x) for x in self.lines],
        }
        last = self.verdict if finished else "not finished"
        texts = {
            "report.json": json.dumps(document, indent=1),
            "report.txt": "\n".join([*map(str, self.lines), last, ""]),
        }
        for name, text in texts.items():
            with atomic_write(self.folder / name) as file:
                file.write(text.encode())
        return document
