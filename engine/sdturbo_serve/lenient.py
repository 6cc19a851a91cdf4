"""What a lenient server leaves out of a request, because it cannot honour it. The answer names it in `not_honoured`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from sdturbo.bundle.description import Size
from sdturbo_serve.schemas import Edit, Generation
from sdturbo_serve.service import service_of
from sdturbo_serve.strict import StrictRequest, StrictRoute

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


class LenientRequest(StrictRequest):
    """A request of OpenAI's API. left_out: what a lenient server has left out of it."""

    @property
    def left_out(self) -> dict[str, Any]:
        return self.scope.setdefault("sdturbo.left_out", {})

    async def json(self) -> Any:
        body = await super().json()
        return dict(self._kept(cast(dict[str, Any], body).items(), Generation)) if isinstance(body, dict) else body

    async def _get_form(self, **limits: Any) -> FormData:
        if self._form is None:
            self._form = FormData(self._kept((await super()._get_form(**limits)).multi_items(), Edit))
        return self._form

    def _kept(self, fields: Iterable[tuple[str, Any]], model: type[BaseModel]) -> list[tuple[str, Any]]:
        fields = list(fields)
        if service_of(self).settings.lenient:
            self.left_out.update(not_honoured(fields, model))
        return [(name, value) for name, value in fields if name not in self.left_out]


class LenientRoute(StrictRoute):
    """A route whose requests a lenient server makes strict."""

    request_class = LenientRequest


def in_words(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields and values as an answer shows them, shortened."""
    return {shown(name): shown(value) for name, value in list(fields.items())[:MOST_NAMED]}


def shown(value: Any) -> str:
    """A client's name or value as an answer may repeat it: short, and without halves of characters, which no UTF-8 has."""
    return str(value)[:80].encode("utf-8", "replace").decode()


def nearest_size(sizes: Sequence[Size], height: int, width: int) -> Size:
    """The size whose shape is most like height x width, and of several such the one with most like as many pixels."""

    def distance(size: Size) -> tuple[float, float]:
        return abs(math.log(size[1] / size[0] * height / width)), abs(math.log(size[0] * size[1] / (height * width)))

    return min(sizes, key=distance)
