"""What a lenient server leaves out of a request, because it cannot honour it. The answer names it in `not_honoured`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sdturbo.bundle.description import Size

MOST_NAMED = 20  # fields in an answer
# fields whose values tell how a picture should look or be checked. The others decide what a client gets, or do not fit at all
_WISHES = {
    "background",
    "complexity",
    "frame_count",
    "frame_duration_ms",
    "input_fidelity",
    "markup",
    "moderation",
    "partial_images",
    "quality",
    "style",
    "svg",
}


def not_honoured(fields: Iterable[tuple[str, Any]], model: type[BaseModel]) -> dict[str, Any]:
    """The fields that `model` does not know, and wishes with a value that it refuses."""
    given = dict(fields)
    try:
        model.model_validate(given)
    except ValidationError as error:
        faults = ((str(fault["loc"][0]), fault["type"]) for fault in error.errors() if fault["loc"])
        names = {name for name, kind in faults if kind == "extra_forbidden" or name in _WISHES}
        return {name: value for name, value in given.items() if name in names}
    return {}


def in_words(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields and values as an answer shows them, shortened."""
    return {name[:80]: str(value)[:80] for name, value in list(fields.items())[:MOST_NAMED]}


def nearest_size(sizes: Sequence[Size], height: int, width: int) -> Size:
    """The size whose shape is most like height x width, and of several such the one with most like as many pixels."""

    def distance(size: Size) -> tuple[float, float]:
        return abs(math.log(size[1] / size[0] * height / width)), abs(math.log(size[0] * size[1] / (height * width)))

    return min(sizes, key=distance)
