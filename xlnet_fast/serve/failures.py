"""Errors as responses: one JSON shape, the status, and when to try again.

{"error": {"type": "Overloaded", "message": "..."}}
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.serve.contract import Refusal

INTERNAL = "the service could not answer; its log says why"


def status_of(error: XLNetFastError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refusal):
        return error.status
    return 400 if isinstance(error, ArgumentError) else 500


def headers_of(error: XLNetFastError) -> dict[str, str]:
    """``Retry-After``, where another try makes sense."""
    if isinstance(error, Refusal) and error.retry_after_s is not None:
        return {"retry-after": str(error.retry_after_s)}
    return {}


def described(error: XLNetFastError) -> dict[str, str]:
    """An error's type and message."""
    return {"type": type(error).__name__, "message": str(error)}


def response_of(error: XLNetFastError) -> JSONResponse:
    """An error in the service's own shape."""
    return shaped(status_of(error), described(error), headers_of(error))


def shaped(status: int, error: dict[str, str], headers: Any = None) -> JSONResponse:
    """A response of any error; half a character of a request's text is not repeated."""
    error = {name: text.encode("utf-8", "replace").decode() for name, text in error.items()}
    return JSONResponse({"error": error}, status, headers)


def internal() -> JSONResponse:
    """For what nobody foresaw."""
    return shaped(500, {"type": "InternalError", "message": INTERNAL})


def sentence_of(error: RequestValidationError) -> str:
    """What is wrong with a request's body, without the body."""
    found = []
    for one in error.errors()[:3]:
        if one["type"] == "json_invalid":
            why = one.get("ctx", {}).get("error", "it cannot be read")
            found.append(f"the body is no JSON: {why} at character {one['loc'][-1]}")
            continue
        place = ".".join(str(part) for part in one["loc"] if part != "body")
        found.append(f"{place}: {one['msg']}" if place else str(one["msg"]))
    return "; ".join(found) or "the request cannot be read"


def _of_kind(request: Request) -> str | None:
    """What to say where the body is said to be no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return f"Content-Type is {kind[:80] or 'missing'}, expected application/json"


def _unread(error: BaseException) -> str:
    """Why a body could not be read, without the body."""
    if isinstance(error, UnicodeDecodeError):
        return f"the body is no {error.encoding.upper()} from its byte {error.start}"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    if isinstance(error, ValueError) and "integer string" in str(error):
        return "the body is no JSON that is read: it has a number of thousands of digits"
    return "the body cannot be read, expected JSON in UTF-8"


def install(app: FastAPI) -> None:
    """Answer every error in the one shape."""

    async def ours(request: Request, error: Any) -> JSONResponse:
        return response_of(error)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        message = sentence_of(error)
        if any(tuple(one["loc"]) == ("body",) for one in error.errors()):
            message = _of_kind(request) or message
        return shaped(400, {"type": "ArgumentError", "message": message})

    async def http(request: Request, error: Any) -> JSONResponse:
        if error.status_code == 400 and error.__cause__ is not None:  # of reading the body
            message = _of_kind(request) or _unread(error.__cause__)
            return shaped(400, {"type": "ArgumentError", "message": message})
        kind = "NotFound" if error.status_code == 404 else "HTTPError"
        return shaped(
            error.status_code, {"type": kind, "message": str(error.detail)}, error.headers
        )

    app.add_exception_handler(XLNetFastError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
