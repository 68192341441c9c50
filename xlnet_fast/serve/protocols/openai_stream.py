"""Completions as server-sent events, several side by side, which end as the client goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.predict.writing import Ending
from xlnet_fast.serve.contract import Service
from xlnet_fast.serve.protocols.wire import EVENTS, Stream, begun

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Asked:
    """What is streamed: ``copies`` texts of each prompt; ``echo``: with the prompt before them."""

    model: str
    prompts: Sequence[str]
    copies: int
    parameters: Mapping[str, Any]
    echo: bool
    usage: bool


@dataclass(frozen=True)
class Ended:
    """The end of a text: by itself or at the last token, and how many tokens it has."""

    by_itself: bool
    new_tokens: int


def finish_reason(ended: bool) -> str:
    """As OpenAI has it."""
    return "stop" if ended else "length"


async def streamed(
    service: Service, asked: Asked, head: Mapping[str, Any], prompt_tokens: int
) -> Response:
    """The response, begun: what is refused before the first word has a status of its own."""
    events = _events(_merged(_texts(service, asked)), asked, head, prompt_tokens)
    return Stream(await begun(events), media_type=EVENTS)


def _texts(service: Service, asked: Asked) -> list[AsyncGenerator[str | Ended, None]]:
    """One for each text."""
    found = []
    for prompt in asked.prompts:
        for copy in range(asked.copies):
            parameters = dict(asked.parameters)
            if "seed" in parameters:
                parameters["seed"] += copy  # or all would be the same
            found.append(_text(service, asked, prompt, parameters))
    return found


async def _text(
    service: Service, asked: Asked, prompt: str, parameters: dict[str, Any]
) -> AsyncGenerator[str | Ended, None]:
    """The parts of a text, then its end."""
    parts: Any = service.stream(asked.model, prompt, parameters=parameters)
    is_begun = not asked.echo
    async with aclosing(parts):
        async for part in parts:
            if not is_begun:
                yield prompt
                is_begun = True
            if isinstance(part, Ending):
                yield Ended(part.answer["ended"], part.answer["new_tokens"])
            else:
                yield part


async def _merged(
    sources: Sequence[AsyncGenerator[str | Ended, None]],
) -> AsyncGenerator[tuple[int, str | Ended], None]:
    """What several sources give, with their numbers, as it comes; all end with it."""
    queue: asyncio.Queue[tuple[int, str | Ended] | Exception] = asyncio.Queue(len(sources))

    async def pump(number: int, source: AsyncGenerator[str | Ended, None]) -> None:
        try:
            async with aclosing(source):
                async for value in source:
                    await queue.put((number, value))
        except Exception as error:  # or who reads the queue would wait for ever
            await queue.put(error)

    tasks = [asyncio.create_task(pump(*pair)) for pair in enumerate(sources)]
    try:
        open_ones = len(tasks)
        while open_ones:
            value = await queue.get()
            if isinstance(value, Exception):
                raise value
            open_ones -= isinstance(value[1], Ended)
            yield value
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(
    values: AsyncGenerator[tuple[int, str | Ended], None],
    asked: Asked,
    head: Mapping[str, Any],
    prompt_tokens: int,
) -> AsyncGenerator[str, None]:
    """Chunks; an error after the first one is an event too, and the last one then."""
    new_tokens, is_begun = 0, False
    async with aclosing(values):
        try:
            async for index, value in values:
                text, reason = value, None
                if isinstance(value, Ended):
                    text, reason = "", finish_reason(value.by_itself)
                    new_tokens += value.new_tokens
                choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
                yield _event({**head, "choices": [choice]})
                is_begun = True
        except XLNetFastError as error:
            if not is_begun:
                raise
            yield _event({"error": {"message": str(error), "type": "server_error"}})
            return
    if asked.usage:
        total = prompt_tokens + new_tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens}
        yield _event({**head, "choices": [], "usage": {**usage, "total_tokens": total}})
    yield DONE


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
