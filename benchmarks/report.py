"""The end of every suite's command: tables, charts and one JSON line of its measurements, or a known error in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.tables import document_tables
from sdturbo.errors import SDTurboError


def report(name: str, measure: Callable[[], dict[str, Any]], pictures: Path | None = None) -> int:
    """Print the document that `measure` returns. Returns the command's exit code.

    pictures: the directory for its charts. A run that is not finished has none.
    """
    try:
        document = measure()
    except SDTurboError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    print(document_tables(document))
    for picture in charts.draw(document, pictures) if pictures and "finished" in document else ():
        print(picture)
    print(json.dumps(document))
    return 0
