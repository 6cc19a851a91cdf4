"""Bodies without two meanings: each name once, and of the content type that the route takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from sdturbo_serve.errors import ApiError

JSON, FORMS = ("application/json",), ("multipart/form-data", "application/x-www-form-urlencoded")


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. Raises ApiError, also for an object that has a name twice: readers differ in which one counts."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg) from error
    except UnicodeDecodeError as error:
        raise _not_json(error.reason) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise _not_json("a number too long, or nested too deeply") from error


def check_once(form: FormData, *several: str) -> None:
    """Raise ApiError for a field that came more than once, unless it is one of `several`."""
    for name, count in Counter(name for name, _ in form.multi_items() if name not in several).items():
        if count > 1:
            raise _twice(name)


class StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON is read by `parse_json`, and whose body has the declared content type."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        declared = getattr(self.body_field.field_info, "media_type", None) if self.body_field else None

        async def handle(request: Request) -> Response:
            if declared is not None:
                _check_type(request.headers.get("content-type", ""), JSON if declared in JSON else FORMS)
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def _check_type(given: str, expected: tuple[str, ...]) -> None:
    kind = given.partition(";")[0].strip().lower()
    if kind not in expected:
        raise ApiError(415, f"Got the content type {kind[:80]!r}; expected {expected[0]}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _twice(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return found


def _not_json(reason: str) -> ApiError:
    return ApiError(400, f"The body is not JSON: {reason}.", code="invalid_json")


def _twice(name: str) -> ApiError:
    return ApiError(400, f"Got {name[:80]!r} more than once.", param=name[:80], code="duplicate_parameter")
