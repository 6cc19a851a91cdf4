"""Bodies with one meaning: each name comes once, in the content type that the route takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from sdturbo_serve.errors import ApiError

JSON, FORMS = ("application/json",), ("multipart/form-data", "application/x-www-form-urlencoded")


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. Raises ApiError, also for a name that comes twice: readers differ in the one they take."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = "a number is too long, or values are nested too deeply"
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error.reason
        raise ApiError(400, f"The body is not JSON: {reason}.", code="invalid_json") from error


def check_once(form: FormData, *repeatable: str) -> None:
    """Raise ApiError for a field that comes more than once, unless it is `repeatable`."""
    _refuse_duplicates(name for name, _ in form.multi_items() if name not in repeatable)


class StrictRequest(HttpRequest):
    async def json(self) -> Any:
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route that reads JSON by `parse_json` and refuses other content types than the declared one."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        declared = getattr(self.body_field.field_info, "media_type", None) if self.body_field else None
        expected = JSON if declared in JSON else FORMS

        async def handle(request: HttpRequest) -> Response:
            given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if declared is not None and given not in expected:
                raise ApiError(415, f"Got the content type {given[:80]!r}. Expected {expected[0]}.")
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_duplicates(name for name, _ in pairs)
    return dict(pairs)


def _refuse_duplicates(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ApiError(400, f"Got {name[:80]!r} more than once.", param=name[:80], code="duplicate_parameter")
