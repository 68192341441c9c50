"""Tiny classifiers in folders, and a service in this process that answers httpx."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import torch
from tiny_finetuning import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.serve import versions
from xlnet_fast.serve.app import create_app
from xlnet_fast.serve.options import ServeOptions

LABELS = {0: "good", 1: "bad", 2: "neither"}
TEXTS = ["a class", "the value of an object with a function", "this is a class of an object " * 6]


def classifier(folder: Path, seed: int = 0, source: Path | None = None) -> Path:
    """A random classifier of three labels, another one for each seed."""
    if source is None:
        checkpoint(folder)
    else:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    config = XLNetConfig.from_pretrained(folder)
    config.id2label = LABELS
    config.architectures = ["XLNetForSequenceClassification"]
    torch.manual_seed(seed)
    model = XLNetForSequenceClassification(config)
    with torch.no_grad():
        model.logits_proj.weight.mul_(20)  # so that texts are told apart
    model.save_pretrained(folder)
    return folder


def options(models: Path, **changes: Any) -> ServeOptions:
    """Of a service that does not look for versions by itself."""
    return ServeOptions(**{"models": str(models), "poll": 0.0, "threads": 1, **changes})


@contextlib.asynccontextmanager
async def serving(chosen: ServeOptions) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """The application, started, and a client of it."""
    app = create_app(chosen)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield app.state.service, client


def run(chosen: ServeOptions, work: Any) -> Any:
    """What ``await work(service, client)`` gives."""

    async def main() -> Any:
        async with serving(chosen) as (service, client):
            return await work(service, client)

    return asyncio.run(main())


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until it holds.

    Raises:
        TimeoutError: it does not.
    """

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), seconds)


def old(folder: Path, monkeypatch: Any) -> None:
    """What was written just now counts as settled."""
    monkeypatch.setattr(versions, "SETTLED_S", 0.0)
