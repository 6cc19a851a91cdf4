"""Stored results: one JSON file per suite and bundle, with machine, versions and date.

A row is on disk as soon as it is measured. An interrupted run of the same settings goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdturbo import Bundle
from sdturbo.commands import doctor
from sdturbo.errors import InvalidRequest
from sdturbo.files import atomic_write

DIRECTORY = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent

Json = dict[str, Any]
# of a machine: rows that share them belong together. A new kernel or another host of the same kind is no other machine.
_SAME = ("cpu", "python", "sdturbo", "packages")


def machine() -> Json:
    """CPU, memory and versions, which figures depend on. They are the same in every run of the same installation."""
    report = doctor.report()
    keys = ("cpu", "memory_gb", "platform", "python", "sdturbo")
    return {key: report[key] for key in keys} | {"packages": {k: v for k, v in report["packages"].items() if v}}


class Results:
    """Rows of one run, each under a key. While it runs they lie in `<name>.partial.json`. `finish` gives them their name."""

    def __init__(
        self, directory: Path, suite: str, name: str, settings: Mapping[str, Any], *, reopen: bool = False
    ) -> None:
        """Go on with the unfinished run of the same settings on such a machine, or begin a new one.

        reopen: go on with a finished run too, whose rows then stay until they are replaced. An unfinished run of other settings
        or of another machine is then not overwritten. Raises InvalidRequest.
        """
        stem = f"{suite}-{re.sub(r'[^a-z0-9.]+', '-', name.lower())}"
        self.path = directory / f"{stem}.json"
        self._partial = directory / f"{stem}.partial.json"
        head: Json = {"suite": suite, "name": name, "settings": json.loads(json.dumps(settings)), "machine": machine()}
        unfinished = self._read(self._partial, head)
        if reopen and self.unfinished and unfinished is None:
            raise InvalidRequest(
                f"{self._partial} holds rows of another machine, other versions or other settings, so they cannot go on here."
                " Finish them there, or move the file away."
            )
        if reopen and unfinished is None:
            unfinished = self._read(self.path, head)
        self.resumed = unfinished is not None
        self.document: Json = unfinished or {**head, **origin(), "rows": []}

    def find(self, key: Mapping[str, Any]) -> Json | None:
        """The row measured under `key`. None for a row that failed, which is tried again."""
        return next((row for row in self.document["rows"] if row["key"] == dict(key) and "error" not in row), None)

    def add(self, key: Mapping[str, Any], row: Mapping[str, Any]) -> Json:
        """Store a row on disk now, in the place of an older one of the same key."""
        new = {"key": dict(key), **row}
        rows = [new if other["key"] == new["key"] else other for other in self.document["rows"]]
        self.document["rows"] = rows if new in rows else [*rows, new]
        self.document.pop("finished", None)
        self._write(self._partial)
        return new

    @property
    def unfinished(self) -> bool:
        """Whether rows are on disk that `finish` has not given their name yet."""
        return self._partial.exists()

    def finish(self) -> Json:
        """Give the file its name, in the place of the last finished run."""
        self.document["finished"] = _now()
        self._write(self._partial)
        self._partial.replace(self.path)
        return self.document

    def _read(self, path: Path, head: Json) -> Json | None:
        try:
            document = json.loads(path.read_bytes())
            same = all(document[key] == head[key] for key in ("suite", "name", "settings"))
            return document if same and all(document["machine"][key] == head["machine"][key] for key in _SAME) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _write(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(json.dumps(self.document, indent=1).encode())


def origin() -> Json:
    """When, at which commit and beside what a figure was measured."""
    load = round(os.getloadavg()[0], 2)  # of the minute before: above 0.3, something else ran
    return {"commit": _commit(), "started": _now(), "load_average": load}


def name_of(bundle: Bundle) -> str:
    """The name of a bundle's results: its model, and its precision where that is not fp32."""
    name = bundle.model["name"]
    return name if bundle.precision == "fp32" else f"{name}-{bundle.precision}"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the directory of stored results."""
    parser.add_argument("--results", type=Path, default=DIRECTORY, help="directory of stored results")


def finished_runs(directory: Path = DIRECTORY) -> Iterator[Json]:
    """Every finished run, by file name."""
    for path in sorted(directory.glob("*.json")):
        if not path.name.endswith(".partial.json"):
            yield json.loads(path.read_bytes())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        return None
    return done.stdout.strip()
