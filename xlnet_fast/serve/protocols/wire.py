"""What the protocols have in common: JSON bodies, refusals as responses, streams that end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import anyio
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve.contract import Refusal, Service, UnknownModel

BAD_REQUEST = 400
JSON, JSON_LINES, EVENTS = "application/json", "application/jsonlines", "text/event-stream"

Model = TypeVar("Model", bound=BaseModel)


class RefusingRoute(APIRoute):
    """A route whose refusals have the protocol's shape, which a subclass gives by ``refusal``."""

    @staticmethod
    def refusal(status: int, message: str, error: Exception) -> Response:
        """A response that says no."""
        raise AssertionError("a subclass has its own")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As the base class, without exceptions that tell the client something."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except Refusal as error:
                response = self.refusal(error.status, str(error), error)
                if error.retry_after_s is not None:
                    response.headers["Retry-After"] = str(error.retry_after_s)
                return response
            except RequestValidationError as error:
                return self.refusal(BAD_REQUEST, sentence(error.errors()), error)
            except ArgumentError as error:
                return self.refusal(BAD_REQUEST, str(error), error)

        return handler


def sentence(errors: Any) -> str:
    """What pydantic found first, with its place; what the client sent is not repeated."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def json_from(text: bytes | str, what: str = "the body") -> Any:
    """A JSON value.

    Raises:
        ArgumentError: it is none, is nested too deeply, or has what is no number or no character.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        surrogate = b"\\ud" if isinstance(text, bytes) else "\\ud"
        if surrogate in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ArgumentError(f"{what} is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{what} has half of a surrogate pair, which is no character"
        ) from error
    except ValueError as error:
        raise ArgumentError(f"{what} is no JSON: {error}") from error
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def parsed(model: type[Model], value: Any) -> Model:
    """A JSON value as a pydantic model. Raises ``ArgumentError`` that names the field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ArgumentError(sentence(error.errors(include_url=False))) from error


def body_of(*models: type[BaseModel], **others: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a body that a route reads itself.

    Args:
        models: of a JSON body, any of them.
        others: schemas of other media types, with "__" for "/".
    """
    content: dict[str, Any] = {
        kind.replace("__", "/"): {"schema": dict(schema)} for kind, schema in others.items()
    }
    schemas = [_inlined(model) for model in models]
    if schemas:
        content[JSON] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A schema whose parts stand where they are used: references would lead nowhere."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def with_parts(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return with_parts(parts[value["$ref"].rpartition("/")[2]])
            return {key: with_parts(one) for key, one in value.items()}
        return [with_parts(one) for one in value] if isinstance(value, list) else value

    return dict(with_parts(schema))


class Stream(StreamingResponse):
    """A response that is sent as it is made; its source ends with it, whoever ended it."""

    def __init__(self, source: AsyncGenerator[Any, None], **settings: Any) -> None:
        """As the base class; no proxy is to collect what is sent."""
        super().__init__(source, **settings)
        self.source = source
        self.headers["Cache-Control"] = "no-store"
        self.headers["X-Accel-Buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the base class, which leaves a source open where the client has gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self.source.aclose()


async def begun(source: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """A source whose first value is there, so that a refusal is not yet part of a stream."""
    try:
        first = [await anext(source)]
    except StopAsyncIteration:
        first = []

    async def rest() -> AsyncGenerator[Any, None]:
        try:
            for value in first:
                yield value
            async for value in source:
                yield value
        finally:
            await source.aclose()

    return rest()


def only_name(service: Service) -> str:
    """The name of the one model that there is.

    Raises:
        UnknownModel: there is none.
        ArgumentError: there are several.
    """
    names = sorted({status.name for status in service.models()})
    if not names:
        raise UnknownModel("no model is loaded")
    if len(names) > 1:
        raise ArgumentError(f"the request names no model; there are {', '.join(names)}")
    return names[0]
