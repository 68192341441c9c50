"""The service's own protocol: records in, answers out, under ``/v1/models``."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.tasks.base import Parameter
from xlnet_fast.serve import failures
from xlnet_fast.serve.contract import ModelStatus, UnknownModel
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols.described import ASKING, LOOKING, refused
from xlnet_fast.serve.service import ModelService

Record = dict[str, Any] | str


class PredictBody(BaseModel):
    """Records to answer: one, or several."""

    model_config = ConfigDict(extra="forbid")

    record: Record | None = Field(None, description="An object of the task's fields, or a text")
    records: list[Record] | None = Field(None, description="Several of them")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Of the answers: see GET /v1/models/NAME"
    )
    timeout_s: float | None = Field(
        None, gt=0, strict=True, description="Seconds that the answer is waited for"
    )
    errors: Literal["request", "record"] = Field(
        "request",
        description='"record": where a record cannot be answered, its error stands in its place '
        "and the others are answered",
    )


class PredictAnswer(BaseModel):
    """The answers of the records, in their order."""

    model: str
    version: str
    task: str
    answers: list[dict[str, Any]]


class ExplainBody(BaseModel):
    """A record whose answer is explained."""

    model_config = ConfigDict(extra="forbid")

    record: Record
    method: str = Field("gradient_x_input", max_length=64)
    target: str | int | None = Field(
        None, description="A label, or the number of a word or a choice; else that of the answer"
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="Of the answer")


def router(service: ModelService, options: ServeOptions) -> APIRouter:
    """``/v1/models``, ``:predict`` and ``:explain``."""
    routes = APIRouter(prefix="/v1/models")

    async def predict(name: str, version: str | None, body: PredictBody) -> PredictAnswer:
        if (body.record is None) == (body.records is None):
            raise ArgumentError("expected record, or records, and not both")
        records = [body.record] if body.record is not None else body.records or []
        found = await service.ask(
            name, records, version=version, parameters=body.parameters, timeout_s=body.timeout_s
        )
        if body.errors == "request":
            answers = found.all()
        else:
            answers = [
                {"error": failures.described(one)} if isinstance(one, XLNetFastError) else one
                for one in found.each
            ]
        return PredictAnswer(
            model=found.model, version=found.version, task=found.task, answers=answers
        )

    async def explain(name: str, version: str | None, body: ExplainBody) -> dict[str, Any]:
        found = await service.explain(
            name, body.record, version=version, method=body.method, target=body.target,
            parameters=body.parameters,
        )  # fmt: skip
        return {"model": name, **found}

    @routes.post("/{name}:predict", responses=refused(ASKING))
    async def predict_default(name: str, body: PredictBody) -> PredictAnswer:
        """The answers of the default version."""
        return await predict(name, None, body)

    @routes.post("/{name}/versions/{version}:predict", responses=refused(ASKING))
    async def predict_version(name: str, version: str, body: PredictBody) -> PredictAnswer:
        """The answers of one version."""
        return await predict(name, version, body)

    @routes.post("/{name}:explain", responses=refused(ASKING))
    async def explain_default(name: str, body: ExplainBody) -> dict[str, Any]:
        """How much each token counts for the default version's answer."""
        return await explain(name, None, body)

    @routes.post("/{name}/versions/{version}:explain", responses=refused(ASKING))
    async def explain_version(name: str, version: str, body: ExplainBody) -> dict[str, Any]:
        """How much each token counts for one version's answer."""
        return await explain(name, version, body)

    @routes.get("", responses=refused(LOOKING))
    async def models() -> dict[str, Any]:
        """Every model, with its versions; ``data`` is how OpenAI's clients read the list."""
        named: dict[str, list[ModelStatus]] = {}
        for one in service.models():
            named.setdefault(one.name, []).append(one)
        return {
            "object": "list",
            "data": [listed(name) for name in named],
            "models": [described(service, name, versions) for name, versions in named.items()],
        }

    @routes.get("/{name}", responses=refused(LOOKING))
    async def model(name: str) -> dict[str, Any]:
        """One model: its versions, and what a record of it has."""
        versions = [one for one in service.models() if one.name == name]
        if not versions:
            raise UnknownModel(f"there is no model {name[:128]!r}")
        return {**listed(name), **described(service, name, versions)}

    return routes


def listed(name: str) -> dict[str, Any]:
    """A model as OpenAI's clients know it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "xlnet_fast"}


def described(service: ModelService, name: str, versions: list[ModelStatus]) -> dict[str, Any]:
    """A model's versions and, where one of them answers, its task's fields and parameters."""
    shown: dict[str, Any] = {
        "name": name,
        "versions": [
            {
                "version": one.version,
                "state": one.state,
                "default": one.default,
                **({"reason": one.reason} if one.reason else {}),
            }
            for one in versions
        ],
    }
    default = next((one for one in versions if one.default and one.state == "ready"), None)
    if default is None:
        return shown
    task = service.predictor(name, default.version).task
    labels: dict[int, str] = task.model.config.id2label if "classification" in task.name else {}
    return shown | {
        "task": task.name,
        "fields": {"required": dict(task.required), "optional": dict(task.optional)},
        "parameters": {key: parameter(one) for key, one in task.parameters.items()},
        "labels": [labels[i] for i in sorted(labels)] or None,
    }


def parameter(one: Parameter) -> dict[str, Any]:
    """What a client should know of a parameter."""
    shown = {
        "type": one.kind.__name__, "default": one.default, "least": one.least, "most": one.most,
        "choices": list(one.choices) or None, "help": one.help,
    }  # fmt: skip
    return {key: value for key, value in shown.items() if value is not None}
