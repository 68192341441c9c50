"""What OpenAPI says of the responses that are no answers: one table for all protocols."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

WHAT = {
    400: "What is wrong with the request",
    401: "No token, or none that is known",
    404: "No such model",
    406: "No answer in a media type of the Accept header",
    408: "The body has not arrived in time",
    409: "A model of that name is loaded already",
    413: "Too large",
    415: "A body of a media type that is not read, or compressed",
    429: "Overloaded",
    500: "The model could not compute it",
    503: "Not ready",
    504: "Out of time",
    507: "Not memory enough for another model",
}
ASKING = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
"""Of a request for answers."""
LOOKING = (400, 401, 404, 408, 413, 415, 429, 500, 503)
"""Of a question about models: no time is spent on it."""
UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"description": WHAT[503], "content": {"application/json": {}}}
}
"""Of a question whether something is ready: the answer says no."""


class Failure(BaseModel):
    """Why there is no answer."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """What is sent in the place of an answer; by all protocols before a request is theirs."""

    error: Failure


class ErrorSentence(BaseModel):
    """The same in the Open Inference Protocol and SageMaker's."""

    error: str


class OpenAIFailure(BaseModel):
    """Why there is no answer, for OpenAI's clients."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """What OpenAI's clients read in the place of an answer."""

    error: OpenAIFailure


def refused(statuses: tuple[int, ...], shape: Any = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """For ``responses`` of a route.

    Args:
        statuses: of ``WHAT``. shape: of the protocol's own refusals.
    """
    return {one: {"model": shape, "description": WHAT[one]} for one in statuses}


def without_422(app: FastAPI) -> None:
    """Describe no 422, which FastAPI adds by itself: what it stands for is answered with 400."""
    make = app.openapi

    def described() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        schema = make()
        if is_new:
            for path in schema.get("paths", {}).values():
                for operation in path.values():
                    operation.get("responses", {}).pop("422", None)
            parts = schema.get("components", {}).get("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                parts.pop(name, None)
        return schema

    app.openapi = described  # type: ignore[method-assign]
