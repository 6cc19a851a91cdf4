"""Bodies with one meaning: each name comes once, in the content type that the route takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, ClassVar, cast

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from sdturbo_serve.errors import ApiError

JSON, FORMS = ("application/json",), ("multipart/form-data", "application/x-www-form-urlencoded")
NULLS = ("", "null")
MOST_NESTED = 64  # values inside each other


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. Raises ApiError, also for a name that comes twice: readers differ in the one they take."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
        _check_depth(text, value)
        return value
    except (ValueError, RecursionError) as error:
        reason = "a number is too long, or values are nested too deeply"
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error.reason
        raise ApiError(400, f"The body is not JSON: {reason}.", code="invalid_json") from error


def check_once(form: FormData, *repeatable: str) -> None:
    """Raise ApiError for a field that comes more than once, unless it is `repeatable`."""
    _refuse_duplicates(name for name, _ in form.multi_items() if name not in repeatable)


class _MemoryParser(MultiPartParser):
    """Keeps files in memory, whose size the guard limits. Starlette's own writes those over 1 MiB to a temporary file."""

    spool_max_size = 0  # no limit


class StrictRequest(HttpRequest):
    """A request with one meaning."""

    async def json(self) -> Any:
        return parse_json(await self.body())

    async def _get_form(self, **limits: Any) -> FormData:
        """The form. Clients write null as empty text or the word null, and such fields are left out.

        A prompt is taken as it is.
        """
        if self._form is None:
            if self.headers.get("content-type", "").lower().startswith(FORMS[0]):
                self._form = await self._parse_multipart(**limits)
            form = await super()._get_form(**limits)
            given = [(name, value) for name, value in form.multi_items() if name == "prompt" or value not in NULLS]
            self._form = FormData(given)
        return self._form

    async def _parse_multipart(self, **limits: Any) -> FormData:
        async with aclosing(self.stream()) as stream:
            try:
                return await _MemoryParser(self.headers, stream, **limits).parse()
            except MultiPartException as error:
                raise ApiError(400, error.message, code="invalid_form") from error


class StrictRoute(APIRoute):
    """A route that reads bodies as `request_class` does, and refuses other content types than the declared one."""

    request_class: ClassVar[type[StrictRequest]] = StrictRequest

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        declared = getattr(self.body_field.field_info, "media_type", None) if self.body_field else None
        expected = JSON if declared in JSON else FORMS

        async def handle(request: HttpRequest) -> Response:
            given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if declared is not None and given not in expected:
                raise ApiError(415, f"Got the content type {given[:80]!r}. Expected {expected[0]}.")
            return await handler(self.request_class(request.scope, request.receive))

        return handle


def _check_depth(text: str | bytes, value: Any) -> None:
    """Raise RecursionError for values that are nested too deeply for what handles them."""
    data = text.encode() if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= MOST_NESTED:
        return
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            raise RecursionError
        level = [inner for each in level for inner in _inside(each)]


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _refuse_duplicates(name for name, _ in pairs)
    return value


def _refuse_duplicates(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ApiError(400, f"Got {name[:80]!r} more than once.", param=name[:80], code="duplicate_parameter")
