"""The routes of OpenAI's API that XLNet can answer: embeddings, and completions with streams."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import anyio.to_thread
import numpy
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.serve.contract import Service, TooLarge
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols.described import ASKING, ErrorBody, OpenAIErrorBody, refused
from xlnet_fast.serve.protocols.openai_stream import Asked, finish_reason, streamed
from xlnet_fast.serve.protocols.wire import RefusingRoute, body_of, json_from, parsed

EMBEDDINGS, GENERATION = "embeddings", "generation"
USUAL_MAX_TOKENS = 16
# Below it the likeliest token is all that is drawn, and numbers divided by it are none any more.
LEAST_TEMPERATURE = 1e-3
Texts = str | list[str] | list[int] | list[list[int]]
_KINDS = {404: "model_not_found", 429: "rate_limit_exceeded"}


class OpenAIRoute(RefusingRoute):
    """Refusals as OpenAI's clients read them."""

    @staticmethod
    def refusal(status: int, message: str, error: Exception) -> Response:
        """An ``error`` with message, type, param and code."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        told = {"message": message, "type": kind, "param": None, "code": _KINDS.get(status)}
        return JSONResponse({"error": told}, status)


class Embed(BaseModel):
    """What is sent to ``/v1/embeddings``; ``user`` is not used."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class StreamOptions(BaseModel):
    """Of a stream; nothing is obfuscated."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class Complete(BaseModel):
    """What is sent to ``/v1/completions``; ``user`` is not used."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: Texts
    max_tokens: int | None = Field(USUAL_MAX_TOKENS, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=128)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    echo: bool | None = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # What is refused unless it changes nothing.
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def check(self) -> None:
        """Raise ``ArgumentError`` for what is not there, and for what does not go together."""
        odd = {
            "logprobs": self.logprobs is not None,
            "best_of": self.best_of not in (None, self.n or 1),
            "suffix": bool(self.suffix),
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
            "logit_bias": bool(self.logit_bias),
        }
        for name, asked in odd.items():
            if asked:
                raise ArgumentError(f"{name} is not supported: leave it out")
        if isinstance(self.stop, list) and len(self.stop) > 4:
            raise ArgumentError(f"stop has {len(self.stop)} texts, expected at most 4")
        if self.stream_options is not None and not self.stream:
            raise ArgumentError("stream_options is of streams, expected stream true with it")


def router(service: Service, options: ServeOptions) -> APIRouter:
    """``/v1/embeddings`` and ``/v1/completions``; the list of models is the native protocol's."""
    routes = APIRouter(
        prefix="/v1", route_class=OpenAIRoute, tags=["OpenAI"],
        responses=refused(ASKING, OpenAIErrorBody | ErrorBody),
    )  # fmt: skip

    @routes.post("/embeddings", summary="Vectors of texts", openapi_extra=body_of(Embed))
    async def embeddings(request: Request) -> Response:
        return await _embeddings(service, parsed(Embed, json_from(await request.body())))

    @routes.post(
        "/completions", summary="Texts that go on from prompts", openapi_extra=body_of(Complete)
    )
    async def completions(request: Request) -> Response:
        return await _completions(service, parsed(Complete, json_from(await request.body())))

    return routes


def _of_task(service: Service, model: str, task: str) -> Predictor:
    predictor = service.predictor(model)
    if predictor.task.name != task:
        raise ArgumentError(f"{model} is a model of {predictor.task.name}, expected one of {task}")
    return predictor


async def _embeddings(service: Service, asked: Embed) -> Response:
    predictor = _of_task(service, asked.model, EMBEDDINGS)
    if asked.dimensions not in (None, predictor.task.model.config.d_model):
        raise ArgumentError(
            f"dimensions is {asked.dimensions}, but the vectors of {asked.model} have "
            f"{predictor.task.model.config.d_model} and cannot be cut: leave it out"
        )
    texts = await _texts(service, predictor, asked.input, "input")
    answers = await service.predict(asked.model, texts)
    data = [
        {"object": "embedding", "index": i, "embedding": _coded(answer["embedding"], asked)}
        for i, answer in enumerate(answers)
    ]
    tokens = await _tokens(predictor, texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _coded(vector: list[float], asked: Embed) -> list[float] | str:
    if asked.encoding_format == "float":
        return vector
    return base64.b64encode(numpy.asarray(vector, "<f4").tobytes()).decode()


async def _texts(
    service: Service, predictor: Predictor, given: Texts, what: str, copies: int = 1
) -> list[str]:
    """The texts of a request: those that are token ids as their words.

    Raises:
        TooLarge: there are more than a request may have.
        ArgumentError: there is none, or ids that the tokenizer would not make.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise ArgumentError(f"{what} is empty, expected at least one text")
    values: Sequence[Any] = [given] if isinstance(given[0], int) else given
    most = service.limits.records
    if len(values) * copies > most:
        raise TooLarge(f"{what} asks for {len(values) * copies} texts, expected at most {most}")
    if isinstance(values[0], str):
        return list(values)
    return await anyio.to_thread.run_sync(lambda: [_words(predictor, one, what) for one in values])


def _words(predictor: Predictor, ids: list[int], what: str) -> str:
    """The text of token ids. Raises ``ArgumentError`` if it does not come to the same ids."""
    tokenizer: Any = predictor.task.tokenizer
    size = len(tokenizer)
    if ids and all(0 <= one < size for one in ids):
        text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        with predictor.task._tokenizing:
            if list(tokenizer(text, add_special_tokens=False)["input_ids"]) == ids:
                return text
    raise ArgumentError(
        f"{what} has token ids that the model's tokenizer makes of no text: send the text"
    )


async def _tokens(predictor: Predictor, texts: Sequence[str]) -> int:
    """As the model reads texts, <sep>, <cls> and what windows share included."""

    def count() -> int:
        return sum(len(one.input_ids) for text in texts for one in predictor.encode(text).pieces)

    return await anyio.to_thread.run_sync(count)


def _parameters(asked: Complete) -> dict[str, Any]:
    """Of the task, without the number of texts."""
    parameters: dict[str, Any] = {"max_new_tokens": asked.max_tokens or USUAL_MAX_TOKENS}
    if asked.stop:
        parameters["stop"] = asked.stop
    temperature = 1.0 if asked.temperature is None else asked.temperature
    if temperature >= LEAST_TEMPERATURE:
        # Their API has no top_k, and checkpoints have one of their own.
        parameters |= {"do_sample": True, "temperature": temperature, "top_k": 0}
        if asked.top_p is not None:
            parameters["top_p"] = asked.top_p
        if asked.seed is not None:
            parameters["seed"] = asked.seed
    return parameters


async def _completions(service: Service, asked: Complete) -> Response:
    predictor = _of_task(service, asked.model, GENERATION)
    asked.check()
    copies, parameters = asked.n or 1, _parameters(asked)
    prompts = await _texts(service, predictor, asked.prompt, "prompt", copies)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
        "model": asked.model,
    }  # fmt: skip
    if asked.stream:
        prompt_tokens = await _tokens(predictor, prompts)
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        what = Asked(asked.model, prompts, copies, parameters, bool(asked.echo), usage)
        return await streamed(service, what, head, prompt_tokens)
    drawn = parameters.get("do_sample", False)
    if drawn and copies > 1:
        parameters["num_return_sequences"] = copies
    answers = await service.predict(asked.model, prompts, parameters=parameters)
    choices: list[dict[str, Any]] = []
    new_tokens = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        for text in answer.get("texts", [answer] * copies):
            new_tokens += text["new_tokens"]
            choices.append({
                "index": len(choices), "text": (prompt if asked.echo else "") + text["text"],
                "logprobs": None, "finish_reason": finish_reason(text["ended"]),
            })  # fmt: skip
    tokens = await _tokens(predictor, prompts)
    usage_told = usage_of(tokens, new_tokens)
    return JSONResponse({**head, "choices": choices, "usage": usage_told})


def usage_of(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Tokens that were read and written."""
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }  # fmt: skip
