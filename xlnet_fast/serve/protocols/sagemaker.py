"""What SageMaker asks of a container: real-time and batch requests, streams, several models."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.writing import Ending
from xlnet_fast.serve.contract import Limits, Record, Service, TimedOut
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols import sagemaker_models
from xlnet_fast.serve.protocols.described import (
    ASKING,
    WHAT,
    ErrorBody,
    ErrorSentence,
    refused,
)
from xlnet_fast.serve.protocols.media import (
    CSV,
    Invocation,
    accepted,
    media_type,
    read,
    written,
)
from xlnet_fast.serve.protocols.wire import (
    EVENTS,
    JSON,
    JSON_LINES,
    RefusingRoute,
    Stream,
    begun,
    body_of,
    json_from,
    only_name,
)

FREE_PATHS = ("/ping",)
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
TARGET_MODEL = "X-Amzn-SageMaker-Target-Model"
MOST_CONCURRENT = 4  # one is tokenized while the others wait for the model or are being sent
MOST_MB = 100  # that SageMaker allows for all transforms at once
UNAVAILABLE = 503


class SageMakerRoute(RefusingRoute):
    """Refusals as an object with ``error``."""

    @staticmethod
    def refusal(status: int, message: str, error: Exception) -> Response:
        """SageMaker passes it on to the client."""
        return JSONResponse({"error": message}, status)


def router(service: Service, options: ServeOptions) -> APIRouter:
    """The routes of the container's contract; of several models if ``load_from`` is set."""
    routes = APIRouter(route_class=SageMakerRoute, tags=["SageMaker"])
    several = options.load_from is not None
    anything: dict[str, Any] = {"type": "string"}
    body = body_of(
        application__json={}, application__jsonlines=anything, text__csv=anything,
        text__plain=anything,
    )  # fmt: skip

    @routes.head("/ping", include_in_schema=False)
    @routes.get(
        "/ping", summary="Whether requests are taken; 503 if not", response_class=Response,
        responses={UNAVAILABLE: {"description": WHAT[UNAVAILABLE]}},
    )  # fmt: skip
    async def ping() -> Response:
        # While one of several models is loaded or has failed, the others answer.
        healthy = not service.draining if several else service.ready
        return Response(status_code=200 if healthy else UNAVAILABLE)

    @routes.get(
        "/execution-parameters", summary="How a batch transform is to ask",
        responses=refused((401, 429, 503)),
    )  # fmt: skip
    async def execution_parameters() -> dict[str, Any]:
        return parameters_of_batches(service.limits)

    @routes.post(
        "/invocations", summary="Answers", openapi_extra=body, responses=_responses(),
        response_class=Response,
    )  # fmt: skip
    async def invocations(request: Request) -> Response:
        return await invoked(service, request, request.headers.get(TARGET_MODEL))

    if options.load_from is not None:
        sagemaker_models.add(routes, service, options.load_from)

        @routes.post(
            "/models/{name}/invoke", summary="Answers of a model", openapi_extra=body,
            responses=_responses(), response_class=Response,
        )  # fmt: skip
        async def invoke(request: Request, name: str) -> Response:
            return await invoked(service, request, name)

    return routes


def _responses() -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the responses to an invocation."""
    kinds = {kind: {"schema": {"type": "string"}} for kind in (JSON_LINES, CSV, EVENTS)}
    answers = {
        "description": "Answers, in the media type of the Accept header",
        "content": {JSON: {"schema": {}}, **kinds},
    }
    return {200: answers, **refused((*ASKING, 406), ErrorSentence | ErrorBody)}


def parameters_of_batches(limits: Limits) -> dict[str, Any]:
    """Parts of a file as large as a body may be, of many records each."""
    payload_mb = min(MOST_MB, max(1, limits.body_bytes >> 20))
    return {
        "MaxConcurrentTransforms": max(1, min(MOST_CONCURRENT, MOST_MB // payload_mb)),
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": payload_mb,
    }


async def invoked(service: Service, request: Request, model: str | None) -> Response:
    """The response to an invocation of a model, or of the only one."""
    model = model or only_name(service)
    predictor = service.predictor(model)
    content_type = request.headers.get("Content-Type", "")
    kind, notes = accepted(request.headers.get("Accept", ""), media_type(content_type, JSON)[0])
    asked = read(await request.body(), content_type, predictor.task)
    attributes = request.headers.get(ATTRIBUTES, "")
    parameters = _parameters(asked, attributes)
    if asked.stream or kind == EVENTS:
        response: Response = await _streamed(service, model, asked, parameters, kind)
    else:
        answers = await _answers(service, model, asked.records, parameters)
        text = written(answers, kind, asked.form, notes.get("header") == "present")
        response = Response(text, media_type=kind)
    if attributes and not attributes.startswith("{"):
        response.headers[ATTRIBUTES] = attributes
    return response


def _parameters(asked: Invocation, attributes: str) -> dict[str, Any]:
    """Of the body and, for bodies that have no place for them, of the custom attributes.

    Attributes that are no JSON object are the client's own, and come back as they are.
    """
    if not attributes.startswith("{"):
        return asked.parameters
    told = json_from(attributes, ATTRIBUTES)
    twice = sorted(told.keys() & asked.parameters.keys())
    if twice:
        raise ArgumentError(f"{twice[0]} is both in the body's parameters and in {ATTRIBUTES}")
    return {**asked.parameters, **told}


def parts(records: Sequence[Record], limits: Limits) -> Iterator[Sequence[Record]]:
    """Records that the service takes at once, in their order: a batch transform sends many more.

    A token has at least one character, nearly always, so no part fills more than half the queue.
    """
    room = limits.queued_tokens // 2
    first = size = 0
    for place, record in enumerate(records):
        length = len(record) if isinstance(record, str) else sum(map(_length, record.values()))
        if place > first and (place - first == limits.records or size + length > room):
            yield records[first:place]
            first, size = place, 0
        size += length
    yield records[first:]


def _length(value: Any) -> int:
    return sum(map(_length, value)) if isinstance(value, list) else len(str(value))


async def _answers(
    service: Service,
    model: str,
    records: Sequence[Record],
    parameters: dict[str, Any],
) -> list[dict[str, Any]]:
    """The answers in order, part by part, within the time of one request."""
    answers: list[dict[str, Any]] = []
    deadline = time.monotonic() + service.limits.timeout_s
    for part in parts(records, service.limits):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"{len(answers)} of {len(records)} records were answered in "
                f"{service.limits.timeout_s:g} s: send fewer at once"
            )
        try:
            answers += await service.predict(model, part, parameters=parameters, timeout_s=left)
        except ArgumentError as error:
            if not answers:
                raise
            message = f"of the records after the first {len(answers)}, {error}"
            raise ArgumentError(message) from error
    return answers


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


async def _streamed(
    service: Service, model: str, asked: Invocation, parameters: dict[str, Any], kind: str
) -> Response:
    """What a model writes, piece by piece, as events or as JSON lines."""
    if kind == CSV:
        raise ArgumentError(f"a stream is {JSON_LINES} or {EVENTS}, not {CSV}")
    if len(asked.records) != 1:
        raise ArgumentError(f"{len(asked.records)} records cannot be streamed, expected one")
    begin, end = ("data: ", "\n\n") if kind == EVENTS else ("", "\n")

    async def lines() -> AsyncGenerator[str, None]:
        pieces = service.stream(model, asked.records[0], parameters=parameters)
        is_begun, last = False, dict[str, Any](done=True)
        async with aclosing(pieces):  # type: ignore[type-var]
            try:
                async for piece in pieces:
                    if isinstance(piece, Ending):
                        told = {name: x for name, x in piece.answer.items() if name != "text"}
                        last = {**last, **told}
                    else:
                        yield f"{begin}{_json({'text': piece})}{end}"
                        is_begun = True
            except XLNetFastError as error:
                if not is_begun:
                    raise
                last = {"error": str(error)}
        yield f"{begin}{_json(last)}{end}"

    return Stream(await begun(lines()), media_type=EVENTS if kind == EVENTS else JSON_LINES)
