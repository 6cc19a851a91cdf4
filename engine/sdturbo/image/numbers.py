"""Numbers of a caller."""

from __future__ import annotations

import math
from typing import cast


def as_number(value: object) -> float:
    """The value as a float, NaN if it is no number. A check of a range then refuses it."""
    try:
        return math.nan if isinstance(value, (bool, str, bytes)) else float(cast("float", value))
    except (TypeError, ValueError, OverflowError):
        return math.nan
