"""The Open Inference Protocol, version 2, over HTTP: what KServe and Triton call the V2 protocol.

A record's fields are the input tensors, of texts; what the outputs are, the model's metadata say.
With the binary data extension. Without gRPC, and without Triton's sequences and shared memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from xlnet_fast._version import __version__
from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.tasks.base import Task
from xlnet_fast.serve.contract import ModelStatus, Service, UnknownModel
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols.described import (
    ASKING,
    LOOKING,
    UNREADY,
    ErrorBody,
    ErrorSentence,
    refused,
)
from xlnet_fast.serve.protocols.tensors import (
    BYTES,
    InferRequest,
    OutputTensor,
    is_list,
    outputs_of,
    packed,
    records_of,
    texts_of,
    usual,
)
from xlnet_fast.serve.protocols.wire import JSON, RefusingRoute, body_of, json_from, parsed

FREE_PATHS = ("/v2/health/live", "/v2/health/ready")
JSON_LENGTH = "Inference-Header-Content-Length"
UNAVAILABLE = 503
_BINARY = "application/octet-stream"
_BINARY_SIZE, _BINARY_OUTPUT, _BINARY_OUTPUTS = (
    "binary_data_size",
    "binary_data",
    "binary_data_output",
)


class OpenInferenceRoute(RefusingRoute):
    """Refusals as the protocol has them."""

    @staticmethod
    def refusal(status: int, message: str, error: Exception) -> Response:
        """An object with ``error``."""
        return JSONResponse({"error": message}, status)


def router(service: Service, options: ServeOptions) -> APIRouter:
    """The routes below ``/v2``."""
    routes = APIRouter(
        prefix="/v2", route_class=OpenInferenceRoute, tags=["Open Inference"],
        responses=refused(LOOKING, ErrorSentence | ErrorBody),
    )  # fmt: skip
    _add_health(routes, service)
    _add_models(routes, service)
    return routes


def _add_health(routes: APIRouter, service: Service) -> None:
    @routes.get("", summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": "xlnet-fast", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", summary="Whether the server answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get(
        "/health/ready", summary="Whether every model is ready; 503 if not", responses=UNREADY
    )
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else UNAVAILABLE)

    @routes.get("/models", summary="The names of the models")
    async def models() -> dict[str, list[str]]:
        return {"models": sorted({status.name for status in service.models()})}


def _add_models(routes: APIRouter, service: Service) -> None:
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return _metadata(service, name, version)

    async def ready(name: str, version: str | None = None) -> Response:
        is_ready = _status(service, name, version).state == "ready"
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else UNAVAILABLE)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        return await _inferred(service, request, name, version)

    binary = {_BINARY.replace("/", "__"): {"type": "string", "format": "binary"}}
    body = body_of(InferRequest, **binary)
    for path, which in (
        ("/models/{name}", "default"),
        ("/models/{name}/versions/{version}", "one"),
    ):
        of = f"{which} version"
        routes.get(path, summary=f"Inputs and outputs of a model, {of}")(metadata)
        routes.get(
            f"{path}/ready", summary=f"Whether a model is ready, {of}; 503 if not",
            responses=UNREADY,
        )(ready)  # fmt: skip
        routes.post(
            f"{path}/infer", summary=f"Answers of a model, {of}", openapi_extra=body,
            responses=refused(ASKING, ErrorSentence | ErrorBody),
        )(infer)  # fmt: skip


def _status(service: Service, name: str, version: str | None) -> ModelStatus:
    """Of a version, or of the default one. Raises ``UnknownModel``."""
    versions = [status for status in service.models() if status.name == name]
    for status in versions:
        if status.version == version or (version is None and status.default):
            return status
    if versions and version is None:
        return versions[-1]
    raise UnknownModel(
        f"there is no model {name!r}" if not versions else f"{name} has no version {version!r}"
    )


def _metadata(service: Service, name: str, version: str | None) -> dict[str, Any]:
    predictor = service.predictor(name, version)
    task = predictor.task
    return {
        "name": name,
        "versions": [status.version for status in service.models() if status.name == name],
        "platform": "xlnet_fast_pytorch",
        "inputs": [
            *(_input(task, field, True) for field in task.required),
            *(_input(task, field, False) for field in (*task.optional, *task.instead)),
        ],
        "outputs": [output.metadata() for output in outputs_of(predictor)],
        "parameters": {"task": task.name},
    }


def _input(task: Task, field: str, required: bool) -> dict[str, Any]:
    shape = [-1, -1] if is_list(task, field) else [-1]
    notes = {"optional": not required}
    return {"name": field, "datatype": BYTES, "shape": shape, "parameters": notes}


async def _inferred(service: Service, request: Request, name: str, version: str | None) -> Response:
    asked, binary = _split(await request.body(), request.headers.get(JSON_LENGTH))
    predictor = service.predictor(name, version)
    tensors = []
    for tensor in asked.inputs:
        size = _binary_size(tensor.name, tensor.parameters or {})
        if size is not None and size > len(binary):
            raise ArgumentError(f"input {tensor.name}: its binary data are not all there")
        tensors.append((tensor, texts_of(tensor, None if size is None else binary[:size])))
        binary = binary[size or 0 :]
    if binary:
        raise ArgumentError(f"{len(binary)} bytes follow that belong to no input")
    parameters = dict(asked.parameters or {})
    all_binary = parameters.pop(_BINARY_OUTPUTS, False) is True
    wanted = _wanted(outputs_of(predictor), asked, all_binary)
    answers = await service.predict(
        name, records_of(predictor.task, tensors), version=version, parameters=parameters
    )
    told = {"model_name": name, "model_version": version or _status(service, name, None).version}
    return _response({**told, **({"id": asked.id} if asked.id else {})}, wanted, answers)


def _split(body: bytes, length: str | None) -> tuple[InferRequest, bytes]:
    """A request and the binary data that follow its JSON."""
    end = len(body)
    if length is not None:
        is_number = length.isascii() and length.isdecimal() and len(length) < 16
        if not is_number or int(length) > len(body):
            raise ArgumentError(
                f"{JSON_LENGTH} is {length[:20]!r}, expected the length of the JSON that the body "
                "begins with"
            )
        end = int(length)
    return parsed(InferRequest, json_from(body[:end])), body[end:]


def _binary_size(name: str, notes: Mapping[str, Any]) -> int | None:
    """How many binary bytes are an input's, None if it is in the JSON."""
    unknown = set(notes) - {_BINARY_SIZE, "content_type"}
    if unknown or notes.get("content_type", "str") != "str":
        raise ArgumentError(
            f"input {name} has parameters other than {_BINARY_SIZE} and content_type 'str'"
        )
    size = notes.get(_BINARY_SIZE)
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ArgumentError(f"input {name}: {_BINARY_SIZE} is {size!r}, expected a number of bytes")
    return size


def _wanted(
    outputs: list[OutputTensor], asked: InferRequest, all_binary: bool
) -> list[tuple[OutputTensor, bool]]:
    """The outputs to answer with, each with whether in binary."""
    if not asked.outputs:
        return [(output, all_binary) for output in usual(outputs)]
    known = {output.name: output for output in outputs}
    wanted = []
    for one in asked.outputs:
        if one.name not in known:
            raise ArgumentError(f"there is no output {one.name!r}; there are {', '.join(known)}")
        notes = one.parameters or {}
        if set(notes) - {_BINARY_OUTPUT}:
            raise ArgumentError(
                f"output {one.name}: {sorted(set(notes) - {_BINARY_OUTPUT})[0]!r} is not known, "
                f"only {_BINARY_OUTPUT} is"
            )
        wanted.append((known[one.name], notes.get(_BINARY_OUTPUT, all_binary) is True))
    return wanted


def _response(
    told: Mapping[str, Any],
    wanted: list[tuple[OutputTensor, bool]],
    answers: list[dict[str, Any]],
) -> Response:
    outputs, binary = [], []
    for output, is_binary in wanted:
        elements, notes = output.of(answers), dict(output.notes or {})
        shape = [len(answers), *output.shape[1:]]
        tensor = {"name": output.name, "datatype": output.datatype, "shape": shape}
        if is_binary:
            binary.append(packed(output, elements))
            notes[_BINARY_SIZE] = len(binary[-1])
        else:
            tensor["data"] = elements
        outputs.append({**tensor, "parameters": notes} if notes else tensor)
    text = json.dumps({**told, "outputs": outputs}, ensure_ascii=False, allow_nan=False).encode()
    if not binary:
        return Response(text, media_type=JSON)
    headers = {JSON_LENGTH: str(len(text))}
    return Response(b"".join([text, *binary]), headers=headers, media_type=_BINARY)
