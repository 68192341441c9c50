"""Tensors of the Open Inference Protocol: records out of those of a request, answers into others.

A tensor of texts, BYTES, is a list in JSON, flat or nested; in the binary data extension each text
is its length, four bytes, the least first, and its UTF-8. Others are arrays, least byte first.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from pydantic import BaseModel, ConfigDict, Field

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.predict.tasks.base import Task
from xlnet_fast.serve.contract import Record
from xlnet_fast.serve.protocols.wire import json_from

BYTES = "BYTES"
_NUMBERS = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}
_LENGTH = struct.Struct("<I")
JSON_NOTE = {"content_type": "application/json"}

Value = bool | int | float | str


class InputTensor(BaseModel):
    """A tensor of a request; ``data`` is missing where it follows the JSON in binary."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: dict[str, Value] | None = None
    data: list[Any] | None = None


class WantedOutput(BaseModel):
    """An output that a request names."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Value] | None = None


class InferRequest(BaseModel):
    """What is sent to ``infer``; the model's name and version of the path count."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    parameters: dict[str, Value] | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=64)
    outputs: list[WantedOutput] | None = Field(default=None, max_length=64)


def texts_of(tensor: InputTensor, binary: bytes | None) -> list[str]:
    """The elements of a tensor of texts, row by row.

    Raises:
        ArgumentError: it is of another type, or its data are not of its shape; says which tensor.
    """
    name = tensor.name
    if tensor.datatype != BYTES:
        raise ArgumentError(f"input {name} is of type {tensor.datatype}, expected {BYTES}")
    if any(size < 0 for size in tensor.shape):
        raise ArgumentError(f"input {name} has the shape {tensor.shape}, expected sizes")
    if binary is None:
        if tensor.data is None:
            raise ArgumentError(f"input {name} has no data")
        texts = list(_flat(tensor.data, len(tensor.shape)))
    else:
        if tensor.data is not None:
            raise ArgumentError(f"input {name} has data both in JSON and in binary")
        texts = list(_unpacked(name, binary))
    for text in texts:
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ArgumentError(f"input {name} has an element of type {kind}, expected a text")
    if len(texts) != math.prod(tensor.shape):
        raise ArgumentError(
            f"input {name} has the shape {tensor.shape}, but {len(texts)} element(s)"
        )
    return texts


def _flat(data: list[Any], rank: int) -> Iterator[Any]:
    for value in data:
        if isinstance(value, list) and rank > 1:
            yield from _flat(value, rank - 1)
        else:
            yield value


def _unpacked(name: str, binary: bytes) -> Iterator[str]:
    at = 0
    while at < len(binary):
        end = at + _LENGTH.size
        if end <= len(binary):
            (length,) = _LENGTH.unpack_from(binary, at)
            at, end = end, end + length
        if end > len(binary):
            raise ArgumentError(f"input {name}: its binary data end within an element")
        try:
            yield binary[at:end].decode()
        except UnicodeDecodeError as error:
            raise ArgumentError(f"input {name} has a text that is no UTF-8: {error}") from error
        at = end


def fields_of(task: Task) -> dict[str, str]:
    """All fields that a record may have, with their types."""
    return {**task.required, **task.optional, **task.instead}


def is_list(task: Task, field: str) -> bool:
    """Whether a field is no text, but a list of them."""
    return fields_of(task)[field] != "text"


def records_of(task: Task, tensors: Sequence[tuple[InputTensor, list[str]]]) -> list[Record]:
    """The records whose fields are a request's tensors.

    Raises:
        ArgumentError: a tensor is no field, or has a shape that it cannot have.
    """
    known = fields_of(task)
    columns: dict[str, list[Any]] = {}
    for tensor, texts in tensors:
        name, shape = tensor.name, tensor.shape
        if name not in known:
            raise ArgumentError(f"{task.name} has no input {name!r}; it has: {', '.join(known)}")
        if name in columns:
            raise ArgumentError(f"input {name} is there twice")
        if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
            columns[name] = [_value(task, name, text) for text in texts]
        elif len(shape) == 2 and is_list(task, name):
            size = shape[1]
            columns[name] = [texts[i * size : (i + 1) * size] for i in range(shape[0])]
        else:
            wanted = "[n], [n, 1] or [n, k]" if is_list(task, name) else "[n] or [n, 1]"
            raise ArgumentError(f"input {name} has the shape {shape}, expected {wanted}")
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ArgumentError(f"the inputs are of different numbers of records: {told}")
    if 0 in counts.values():
        raise ArgumentError("the inputs hold no record, expected at least one")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def _value(task: Task, field: str, text: str) -> Any:
    return json_from(text, f"input {field}") if is_list(task, field) else text


@dataclass(frozen=True)
class OutputTensor:
    """One of a model's outputs.

    Attributes:
        shape: with -1 for the number of records.
        read: its elements of one answer, a list where the shape has a second size.
        notes: parameters that every answer and the metadata have.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    read: Callable[[Mapping[str, Any]], Any]
    notes: Mapping[str, Value] | None = None

    def metadata(self) -> dict[str, Any]:
        """As the metadata of the model tell it."""
        told = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        return {**told, "parameters": dict(self.notes)} if self.notes else told

    def of(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The elements of several answers, row by row."""
        values = [self.read(answer) for answer in answers]
        return [one for row in values for one in row] if len(self.shape) > 1 else values


def outputs_of(predictor: Predictor) -> list[OutputTensor]:
    """What a model answers; the last one, ``answer``, is everything as JSON.

    What only JSON can say, entities and spans, has no other tensor.
    """
    task = predictor.task
    answer = OutputTensor("answer", BYTES, (-1,), _as_json, JSON_NOTE)
    cut = OutputTensor("cut", "BOOL", (-1,), lambda answer: bool(answer.get("cut", False)))
    return [*_TENSORS.get(task.name, _none)(task), cut, answer]


def usual(outputs: Sequence[OutputTensor]) -> list[OutputTensor]:
    """Those that a request gets which names none: all, but JSON only where nothing else says it."""
    has_own = any(output.name not in ("answer", "cut") for output in outputs)
    return [output for output in outputs if output.name != "answer" or not has_own]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _none(task: Any) -> list[OutputTensor]:
    return []


def _of_text_classification(task: Any) -> list[OutputTensor]:
    if task.problem == "regression":
        return [OutputTensor("value", "FP32", (-1,), lambda answer: answer["value"])]
    names = task.model.config.id2label
    labels = [names[i] for i in range(len(names))]
    scores = OutputTensor(
        "scores", "FP32", (-1, len(labels)), lambda answer: _in_order(answer["scores"], labels),
        {"labels": _as_json(labels)},
    )  # fmt: skip
    if task.problem == "multi_label_classification":
        applying = OutputTensor(
            "labels", BYTES, (-1,), lambda answer: _as_json(answer["labels"]), JSON_NOTE
        )
        return [applying, scores]
    return [
        OutputTensor("label", BYTES, (-1,), lambda answer: answer["label"]),
        OutputTensor("score", "FP32", (-1,), lambda answer: answer["score"]),
        scores,
    ]


def _in_order(scores: Mapping[str, float], labels: Sequence[str]) -> list[float]:
    if len(scores) < len(labels):
        raise ArgumentError(
            "the tensor of scores has all labels: leave top_k out, or ask for the outputs label, "
            "score or answer alone"
        )
    return [scores[label] for label in labels]


def _of_embeddings(task: Any) -> list[OutputTensor]:
    size = task.model.config.d_model
    return [OutputTensor("embedding", "FP32", (-1, size), lambda answer: answer["embedding"])]


def _of_generation(task: Any) -> list[OutputTensor]:
    return [
        OutputTensor("text", BYTES, (-1,), _one_text),
        OutputTensor("new_tokens", "INT64", (-1,), lambda answer: answer["new_tokens"]),
        OutputTensor("ended", "BOOL", (-1,), lambda answer: answer["ended"]),
    ]


def _one_text(answer: Mapping[str, Any]) -> str:
    if "texts" in answer:
        raise ArgumentError(
            "the tensor of texts has one for each record: leave num_return_sequences out, or ask "
            "for the output answer alone"
        )
    return str(answer["text"])


def _of_multiple_choice(task: Any) -> list[OutputTensor]:
    return [
        OutputTensor("choice", "INT64", (-1,), lambda answer: answer["choice"]),
        OutputTensor("text", BYTES, (-1,), lambda answer: answer["text"]),
        OutputTensor("score", "FP32", (-1,), lambda answer: answer["score"]),
    ]


_TENSORS: dict[str, Callable[[Any], list[OutputTensor]]] = {
    "text-classification": _of_text_classification,
    "multiple-choice": _of_multiple_choice,
    "embeddings": _of_embeddings,
    "generation": _of_generation,
}


def packed(output: OutputTensor, elements: Sequence[Any]) -> bytes:
    """A tensor's elements in the binary data extension."""
    if output.datatype == BYTES:
        texts = [text.encode() for text in elements]
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    return numpy.asarray(elements, dtype=_NUMBERS[output.datatype]).tobytes()
