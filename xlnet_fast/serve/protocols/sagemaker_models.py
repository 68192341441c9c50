"""Several models in one SageMaker container: listed, loaded and unloaded by requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve.contract import Service, UnknownModel
from xlnet_fast.serve.protocols.described import (
    ASKING,
    LOOKING,
    ErrorBody,
    ErrorSentence,
    refused,
)

MOST_LISTED = 1000


class ModelToLoad(BaseModel):
    """A model to load.

    Attributes:
        model_name: what it is called from now on. url: a folder below the root.
    """

    model_config = {"protected_namespaces": ()}

    model_name: str = Field(min_length=1, max_length=512)
    url: str = Field(min_length=1, max_length=4096)


class Models:
    """The models of a service, and the folders that requests named.

    Attributes:
        root: folder below which all others must lie.
    """

    def __init__(self, service: Service, root: Path) -> None:
        """No folder is looked at but below the root."""
        self.service = service
        self.root = Path(root).resolve()
        self._urls: dict[str, str] = {}

    def names(self) -> list[str]:
        """Of the models that there are."""
        return sorted({status.name for status in self.service.models()})

    def told(self, name: str) -> dict[str, str]:
        """A model as the contract has it. Raises ``UnknownModel``."""
        if name not in self.names():
            raise UnknownModel(f"no model {name!r} is loaded")
        return {"modelName": name, "modelUrl": self._urls.get(name, "")}

    def folder(self, url: str) -> str:
        """The folder that a request names.

        Raises:
            ArgumentError: it is none, or is not below the root, whatever is there.
        """
        wrong = ArgumentError(f"url must be a folder below {self.root}")
        if "\0" in url or not url.startswith("/"):
            raise wrong
        try:
            path = Path(url).resolve()
            inside = path.is_relative_to(self.root) and path != self.root and path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle
            raise wrong from error
        if not inside:
            raise wrong
        return str(path)

    async def load(self, asked: ModelToLoad) -> dict[str, str]:
        """Load a model; see ``Service.load``."""
        await self.service.load(asked.model_name, self.folder(asked.url))
        self._urls[asked.model_name] = asked.url
        return self.told(asked.model_name)

    async def unload(self, name: str) -> dict[str, str]:
        """Let a model go. Raises ``UnknownModel``."""
        told = self.told(name)
        await self.service.unload(name)
        self._urls.pop(name, None)
        return told


def add(routes: APIRouter, service: Service, root: Path) -> None:
    """The routes ``/models``."""
    models = Models(service, root)
    shape = ErrorSentence | ErrorBody
    asked_for = refused(LOOKING, shape)

    @routes.get(
        "/models", summary="The models that are loaded, by name, in pages", responses=asked_for
    )
    async def listed(
        limit: int = Query(MOST_LISTED, ge=1, le=MOST_LISTED),
        next_page_token: str = Query("", max_length=512),
    ) -> dict[str, Any]:
        names = [name for name in models.names() if name > next_page_token]
        page: dict[str, Any] = {"models": [models.told(name) for name in names[:limit]]}
        if len(names) > limit:
            page["nextPageToken"] = names[limit - 1]
        return page

    @routes.post(
        "/models", summary="Load a model: 409 if it is there, 507 if there is no room",
        responses=refused((*ASKING, 409, 507), shape),
    )  # fmt: skip
    async def load(asked: ModelToLoad) -> dict[str, str]:
        return await models.load(asked)

    @routes.get("/models/{name}", summary="A model", responses=asked_for)
    async def one(name: str) -> dict[str, str]:
        return models.told(name)

    @routes.delete(
        "/models/{name}", summary="Let a model go, once its answers are out", responses=asked_for
    )
    async def unload(name: str) -> dict[str, str]:
        return await models.unload(name)
