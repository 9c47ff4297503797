"""Every error as OpenAI's clients expect it: ``{"error": {"message", "type", "param", "code"}}`` and a fitting status."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as PlainHTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from appliance.engines.base import EngineBusy, EngineDown, EngineError, EngineLate, PromptTooLong
from appliance.errors import ApplianceError, DatabaseFailed, UsageError
from appliance.gateway.trace import RESPONSE_HEADERS, trace_of
from retrieval.types import RetrievalError

logger = logging.getLogger("appliance.gateway")

# Not in the standard: what proxies log for a client that went away. Nobody receives it.
CLIENT_GONE = 499
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ELSEWHERE = "try again, or ask for the arm 'quote', which needs no engine"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every failing call answers with."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A failure with its HTTP status; `param` names the field at fault, `code` is for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status_code >= 500 else _KINDS.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def shutting_down() -> ApiError:
    """For what is not done when the server's deadline for open requests has passed."""
    message = "the server is shutting down and could not finish this; try again"
    return ApiError(503, message, code="shutting_down", headers={"Retry-After": "1"})


def as_api_error(error: Exception) -> ApiError:
    """What the client is told. Messages of server-side failures stay in the log: they may name addresses and paths."""
    match error:
        case ApiError():
            return error
        case EngineBusy():
            wait = str(max(1, math.ceil(error.retry_after)))
            return ApiError(503, "the engine's queue is full; try again later", code="engine_busy", headers={"Retry-After": wait})
        case PromptTooLong():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case EngineLate():
            return ApiError(503, f"the model engine took too long; {_ELSEWHERE}", code="engine_timeout", headers={"Retry-After": "1"})
        case EngineDown():
            wait = str(max(1, math.ceil(error.retry_after)))
            message = f"the model engine is not available; {_ELSEWHERE}"
            return ApiError(503, message, code="engine_unavailable", headers={"Retry-After": wait})
        case EngineError():
            return ApiError(503, f"the model engine failed; {_ELSEWHERE}", code="engine_error")
        case UsageError():
            return ApiError(400, str(error), code="invalid_request")
        case DatabaseFailed():
            return ApiError(503, "the database cannot be used; the operator's log says why", code="database_unavailable")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ApiError(503, "there is no space left on the server; the operator has to make some", code="storage_full")
        case RetrievalError():
            return ApiError(503, "the index cannot be read; the operator's log says why", code="index_unavailable")
        case _:
            return ApiError(500, "the server failed on this request; the operator's log has the details", code="internal_error")


def report(error: Exception, request_id: str) -> ApiError:
    """`as_api_error`, with the failures that are the server's own written to the log."""
    shown = as_api_error(error)
    if shown.status_code >= 500 and not isinstance(error, EngineBusy | ApiError):
        # Where the engine's server failed, our own stack tells nothing.
        logger.error("request %s failed: %s", request_id, error, exc_info=None if isinstance(error, EngineDown) else error)
    return shown


def field_path(location: Sequence[int | str]) -> str:
    """``("body", "messages", 0, "content")`` as ``messages[0].content``."""
    path = ""
    for part in location[1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def install_errors(app: FastAPI) -> None:
    """Route every exception of the app through `as_api_error`."""

    def known(request: Request, error: Exception) -> Response:
        return report(error, trace_of(request.scope).request_id).response()

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(
                400, f"the body is not valid JSON: {first['ctx']['error']} at position {first['loc'][1]}", code="bad_json"
            ).response()
        path = field_path(first["loc"])
        if not path:
            return ApiError(400, "the body must be a JSON object sent with Content-Type: application/json", code="bad_json").response()
        more = len(error.errors()) - 1
        others = f" (and {more} more)" if more else ""
        return ApiError(400, f"{path}: {first['msg'].removeprefix('Value error, ')}{others}", param=path, code="invalid_field").response()

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, PlainHTTPException)
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    def unexpected(request: Request, error: Exception) -> Response:
        # Answered outside the other middleware (and logged with its traceback by the server), so the headers are put on here.
        response = as_api_error(error).response()
        response.headers.update({**RESPONSE_HEADERS, "X-Request-ID": trace_of(request.scope).request_id})
        return response

    for kind in (ApiError, EngineError, ApplianceError, RetrievalError, OSError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(PlainHTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)
