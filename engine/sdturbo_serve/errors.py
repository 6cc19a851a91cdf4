"""Every error as an answer in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from sdturbo.errors import Cancelled, FilterFailed, InvalidRequest, Refused, SDTurboError, SigningFailed
from sdturbo_serve.worker import EngineEnded

log = logging.getLogger("sdturbo.serve")

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class ApiError(HTTPException):
    """An error as an answer. FastAPI's body parsing lets an HTTPException pass unchanged."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.code = code or CODES.get(status)
        self.param = param

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, headers=self.headers)


def deadline_exceeded(seconds: float) -> ApiError:
    message = f"No picture within {seconds:g} s. The work was given up, because the server is busy. Try again later."
    return ApiError(504, message, code="deadline_exceeded", headers={"X-Should-Retry": "false"})


def mask_without_image() -> ApiError:
    text = "Got a mask without an image. A mask says which part of an image is drawn anew. Send the image too."
    return ApiError(400, text, param="mask", code="invalid_value")


def missing(param: str) -> ApiError:
    return ApiError(400, f"Missing parameter: {param}.", param=param, code="missing_parameter")


@contextmanager
def refusals_name(param: str) -> Generator[None]:
    """The engine's refusals as answers that name the parameter."""
    try:
        yield
    except InvalidRequest as error:
        raise as_api_error(error, param) from error


def as_api_error(error: Exception, param: str | None = None) -> ApiError:
    """Any error as an answer. param: the parameter that an InvalidRequest is about."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, (RequestValidationError, ValidationError)):
        return _from_validation(error.errors())
    if isinstance(error, InvalidRequest):
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, Refused):  # as OpenAI answers. A filter may repeat halves of characters, which no UTF-8 has
        text = str(error).encode("utf-8", "replace").decode()
        return ApiError(400, text, code="content_policy_violation")
    if isinstance(error, FilterFailed):  # its text is the operator's
        return ApiError(
            500, "The filter of this server failed, so nothing is given. Its log says why.", code="filter_failed"
        )
    if isinstance(error, SigningFailed):
        return ApiError(500, str(error), code="signing_failed")
    if isinstance(error, Cancelled):
        return ApiError(503, str(error), code="stopping")
    if isinstance(error, EngineEnded):
        return ApiError(503, str(error), code="engine_ended", headers={"Retry-After": "5"})
    if isinstance(error, SDTurboError):
        return ApiError(500, str(error), code="engine_error")
    return ApiError(500, "The server failed. Its log says why.")


def _from_validation(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first fault that pydantic reports, without the value, which may be megabytes long."""
    first = faults[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place)[:80] or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {param or ''!r}.", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return missing(param) if param else ApiError(400, "Missing parameter: the body.", code="missing_parameter")
    return ApiError(400, f"{param or 'The body'}: {first['msg']}.", param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Let every error of `app` leave in this shape."""

    async def answer(_: HttpRequest, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def surprise(request: HttpRequest, error: Exception) -> JSONResponse:
        log.error("unexpected error", exc_info=error, extra={"fields": {"path": request.url.path}})
        return await answer(request, error)

    for expected in (HTTPException, RequestValidationError, SDTurboError):
        app.add_exception_handler(expected, answer)
    app.add_exception_handler(Exception, surprise)
