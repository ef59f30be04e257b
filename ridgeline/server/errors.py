"""Errors as OpenAI's API gives them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ridgeline.engine.worker import EngineClosed
from ridgeline.errors import InputError, OutOfMemory

#: A message that repeats what a client sent is cut to so many characters.
_LONGEST = 400


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error: its HTTP status, and what OpenAI's JSON says of it. ``param`` names the
    field that is to blame, ``code`` the kind of error where OpenAI has a name for it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> ErrorBody:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return ErrorBody(
            error=ErrorDetail(message=_printable(str(self)), type=kind, param=self.param, code=self.code)
        )

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, self.headers)


def api_error(error: Exception, param: str | None = None) -> ApiError:
    """What the client is told of an exception; bad input blames the field ``param``."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemory):
        return ApiError(str(error), status=503, code="out_of_memory")
    if isinstance(error, InputError):
        return ApiError(str(error), param=param)
    if isinstance(error, EngineClosed):
        return unavailable()
    return ApiError(f"the request could not be computed: {error}", status=500)


def unavailable() -> ApiError:
    """The engine has ended, or is about to."""
    return ApiError(
        "the server is shutting down", status=503, code="unavailable", headers={"Retry-After": "5"}
    )


def handle_errors(app: FastAPI) -> None:
    """Let every error of ``app`` be answered in OpenAI's form."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error.errors()).response

    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            400: "the body is not JSON in UTF-8",
            404: f"there is no {request.method} {request.url.path}",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, error.detail)
        code = {413: "request_too_large"}.get(error.status_code)
        return ApiError(message, status=error.status_code, code=code, headers=error.headers).response

    for kind in (ApiError, InputError, EngineClosed, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors, by the name of its field."""
    first = errors[0]
    path = first["loc"][1:]
    if path[:1] == ("response_format",):
        path = path[:1] + path[2:]  # pydantic names the type that was given, too
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {first['ctx']['error']} at character {path[0]}")
    if not path:
        return ApiError("expected a JSON object, sent with Content-Type: application/json")
    param = _printable(str(path[0]) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path[1:]))
    if first["type"] == "extra_forbidden":
        return ApiError(f"{param} is not a field that this server knows: leave it out", param=param)
    if first["type"] == "missing":
        return ApiError(f"{param} is missing", param=param)
    if first["type"] == "expected":
        return ApiError(f"{param} {first['msg']}", param=param)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        known = "text, json_object or json_schema"
        return ApiError(f"{param} must be an object whose type is {known}", param=param)
    if first["type"] == "too_short":
        return ApiError(f"{param} holds too little: give at least {first['ctx']['min_length']}", param=param)
    return ApiError(f"{param}: {first['msg']}", param=param)


def _printable(text: str) -> str:
    """Without lone surrogates, which JSON may spell and UTF-8 may not; not endless."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
