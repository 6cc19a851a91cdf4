"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, whatever went wrong and wherever."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sdturbo.errors import Cancelled, InvalidRequest, SDTurboError
from sdturbo_serve.worker import EngineEnded

log = logging.getLogger("sdturbo.serve")

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class ApiError(HTTPException):
    """An answer that is an error. Being an HTTPException, it passes FastAPI's body parsing unchanged."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=dict(headers or {}))
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        return error_body(self.status_code, self.detail, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def invalid(error: InvalidRequest, param: str | None = None) -> ApiError:
    """The engine's own refusal as a 400."""
    return ApiError(400, str(error), param=param, code="invalid_value")


def deadline_exceeded(seconds: float) -> ApiError:
    message = f"No picture within {seconds:g} s; the work was given up. The server is busy: try again later."
    return ApiError(504, message, code="deadline_exceeded", headers={"X-Should-Retry": "false"})


def from_engine(error: SDTurboError) -> ApiError:
    """What the engine or its thread raised, as an answer."""
    if isinstance(error, InvalidRequest):
        return invalid(error)
    if isinstance(error, Cancelled):
        return ApiError(503, str(error), code="stopping")
    if isinstance(error, EngineEnded):
        return ApiError(503, str(error), code="engine_ended", headers={"Retry-After": "5"})
    return ApiError(500, str(error), code="engine_error")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's findings, without the value that was found, which may be megabytes long."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    kind = str(first["type"])
    if kind == "extra_forbidden":
        return ApiError(
            400, f"Unknown parameter: {(param or '')[:80]!r}.", param=param and param[:80], code="unknown_parameter"
        )
    if kind == "missing":
        return ApiError(400, f"Missing parameter: {param or 'the body'}.", param=param, code="missing_parameter")
    where = f"{param}: " if param else "The body: "
    return ApiError(400, f"{where}{first['msg']}.", param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Let every error of `app` leave in this shape."""

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        found = (
            error if isinstance(error, ApiError) else ApiError(error.status_code, error.detail, headers=error.headers)
        )
        return JSONResponse(found.body(), found.status_code, headers=found.headers)

    async def validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return await http_error(request, from_validation(error.errors()))

    async def engine_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SDTurboError)
        return await http_error(request, from_engine(error))

    async def surprise(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", exc_info=error, extra={"fields": {"path": request.url.path}})
        return JSONResponse(error_body(500, "The server failed; its log says why."), 500)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(SDTurboError, engine_error)
    app.add_exception_handler(Exception, surprise)
