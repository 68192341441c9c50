"""A service without a queue, over loaded predictors, and a client of one protocol's routes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from tiny_finetuning import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.predict import Predictor
from xlnet_fast.predict.writing import Ending
from xlnet_fast.serve.contract import Conflict, Limits, ModelStatus, UnknownModel

TEXTS = ["the value of an object", "this function is a class", "with a \N{SNOWMAN} of the value"]


class SmallService:
    """What ``contract.Service`` says, computed at once.

    Attributes:
        predictors: by name; each has the version "1".
        refusal: raised by every call for answers.
        asked: what was asked for: (model, records, parameters).
        times: ``timeout_s`` of each call for answers.
        ended: streams that came to an end or were left.
        pause_s: between the pieces of a stream.
    """

    def __init__(self, **predictors: Any) -> None:
        self.predictors = dict(predictors)
        self.limits = Limits()
        self.ready = True
        self.draining = False
        self.refusal: Exception | None = None
        self.times: list[float | None] = []
        self.asked: list[tuple[str, list[Any], dict[str, Any]]] = []
        self.ended = 0
        self.pause_s = 0.0

    def limited(self, **limits: Any) -> None:
        """Other limits."""
        self.limits = dataclasses.replace(self.limits, **limits)

    def predictor(self, model: str, version: str | None = None) -> Any:
        if model not in self.predictors or version not in (None, "1"):
            raise UnknownModel(f"there is no model {model!r}, version {version}")
        return self.predictors[model]

    async def predict(
        self, model, records, *, version=None, parameters=None, timeout_s=None
    ) -> list[dict[str, Any]]:
        predictor = self.predictor(model, version)
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((model, list(records), dict(parameters or {})))
        self.times.append(timeout_s)
        return predictor(list(records), **(parameters or {}))

    async def stream(
        self, model, record, *, version=None, parameters=None, timeout_s=None
    ) -> AsyncIterator[str]:
        predictor = self.predictor(model, version)
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((model, [record], dict(parameters or {})))
        try:
            for piece in predictor.stream(predictor.encode(record, **(parameters or {}))):
                await asyncio.sleep(self.pause_s)
                if piece or isinstance(piece, Ending):
                    yield piece
        finally:
            self.ended += 1

    def models(self) -> list[ModelStatus]:
        return [
            ModelStatus(
                name=name, version="1", state="ready", task=predictor.task.name, default=True
            )
            for name, predictor in sorted(self.predictors.items())
        ]

    async def load(self, name: str, folder: str) -> None:
        if name in self.predictors:
            raise Conflict(f"{name} is loaded")
        if self.refusal is not None:
            raise self.refusal
        self.predictors[name] = Predictor.load(folder)

    async def unload(self, name: str) -> None:
        self.predictor(name)
        del self.predictors[name]


def classifier(
    folder: Path, *, architecture: Any = XLNetForSequenceClassification, **settings: Any
) -> Path:
    """A random checkpoint with a head and three labels, one of which is no tame text."""
    if not (folder / "config.json").exists():
        checkpoint(folder)
    config = XLNetConfig.from_pretrained(folder)
    labels = ("good", "bad", "<img src=x onerror=alert(1)>")
    settings = {"id2label": dict(enumerate(labels)), **settings}
    for name, value in settings.items():
        setattr(config, name, value)
    config.architectures = [architecture.__name__]
    architecture(config).save_pretrained(folder)
    return folder


def client_of(
    router: Callable[..., Any], service: Any, **settings: Any
) -> Callable[..., httpx.Response]:
    """``ask(method, path, **of httpx)`` of an app that has these routes alone."""
    app = FastAPI()
    given: Mapping[str, Any] = {"load_from": None, "tokens_file": None, **settings}
    app.include_router(router(service, SimpleNamespace(**given)))

    def ask(method: str, path: str, **request: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(asked())

    ask.app = app  # type: ignore[attr-defined]
    return ask


def refused(response: httpx.Response, status: int, words: str) -> None:
    """The response says no with these words."""
    assert response.status_code == status, response.text
    assert words in response.text, response.text
