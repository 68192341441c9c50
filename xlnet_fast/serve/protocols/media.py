"""Records in JSON, JSON lines, CSV and plain text, and answers in the first three of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.tasks.base import Task
from xlnet_fast.serve.contract import Record, Refusal
from xlnet_fast.serve.protocols.tensors import fields_of, is_list
from xlnet_fast.serve.protocols.wire import EVENTS, JSON, JSON_LINES, json_from

CSV, PLAIN = "text/csv", "text/plain"
_SAME = {
    "application/jsonl": JSON_LINES,
    "application/x-jsonlines": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
}
READABLE = (JSON, JSON_LINES, CSV, PLAIN)
WRITABLE = (JSON, JSON_LINES, CSV, EVENTS)
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
ONE, MANY = "one", "many"
# What holds the records in an object, and what then holds the answers.
_HOLDERS = {"instances": "predictions", "records": "answers", "inputs": MANY}


class NotReadable(Refusal):
    """A body of a media type that is not read."""

    status = 415


class NotWritable(Refusal):
    """No answer in a media type that the client takes."""

    status = 406


@dataclass(frozen=True)
class Invocation:
    """What a body asks for.

    Attributes:
        records: one or more. parameters: of their answers.
        form: of an answer in JSON: ONE object, a list of MANY, or what holds them in an object.
        stream: whether the answer is to be sent as it is written.
    """

    records: list[Record]
    parameters: dict[str, Any] = field(default_factory=dict)
    form: str = MANY
    stream: bool = False


def media_type(header: str, default: str) -> tuple[str, dict[str, str]]:
    """The type of a header and its parameters, in small letters."""
    first, *others = header.lower().split(";")
    kind = first.strip() or default
    pairs = (other.strip().partition("=") for other in others)
    return _SAME.get(kind, kind), {name: value.strip('"') for name, _, value in pairs}


def read(body: bytes, header: str, task: Task) -> Invocation:
    """A body of the media type that its header names, by default JSON.

    Raises:
        NotReadable: it is of another type.
        ArgumentError: it is not what its type says, or holds no record.
    """
    kind, notes = media_type(header, JSON)
    if kind not in READABLE:
        raise NotReadable(f"Content-Type is {kind}, expected {', '.join(READABLE)}")
    if notes.get("charset", "utf-8") not in _CHARSETS:
        raise NotReadable(f"the charset is {notes['charset'][:40]}, expected utf-8")
    if kind == JSON:
        return _of_json(json_from(body))
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"the body is no UTF-8: {error}") from error
    if kind == CSV:
        records = _of_csv(text, notes.get("header"), task)
    elif kind == JSON_LINES:
        records = [_record(json_from(*line), line[1]) for line in _lines(text)]
    else:
        records = [line for line, _ in _lines(text)]
    if not records:
        raise ArgumentError("the body holds no record, expected at least one")
    return Invocation(records)


def _of_json(value: Any) -> Invocation:
    """A record, a list of them, or an object with one of ``_HOLDERS``."""
    if isinstance(value, dict):
        for name, form in _HOLDERS.items():
            if name in value:
                return _of_object(value, name, form)
    if isinstance(value, list):
        return Invocation(_several(value, "the list"))
    return Invocation([_record(value, "the body")], form=ONE)


def _of_object(value: Mapping[str, Any], name: str, form: str) -> Invocation:
    odd = sorted(set(value) - {name, "parameters", "stream"})
    if odd:
        raise ArgumentError(f"beside {name} there may be parameters and stream, not {odd[0]!r}")
    parameters, stream = value.get("parameters") or {}, value.get("stream", False)
    if not isinstance(parameters, dict):
        raise ArgumentError("parameters is no object, expected names with values")
    if not isinstance(stream, bool):
        raise ArgumentError("stream is neither true nor false")
    records = value[name]
    if isinstance(records, list):
        return Invocation(_several(records, name), parameters, form, stream)
    if form != MANY:
        raise ArgumentError(f"{name} is no list, expected a list of records")
    return Invocation([_record(records, name)], parameters, ONE, stream)


def _several(values: list[Any], what: str) -> list[Record]:
    if not values:
        raise ArgumentError(f"{what} is empty, expected at least one record")
    return [_record(value, f"record {number}") for number, value in enumerate(values, 1)]


def _record(value: Any, what: str) -> Record:
    if not isinstance(value, (str, dict)):
        raise ArgumentError(
            f"{what} is of type {type(value).__name__}, expected an object of fields, or a text"
        )
    return value


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each line and what it is called; not at U+2028 and others of splitlines."""
    if not text:
        return
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            raise ArgumentError(f"line {number} is empty, expected a record on each")
        yield line, f"line {number}"


def _of_csv(text: str, header: str | None, task: Task) -> list[Record]:
    """Rows as records; their columns are named by a header, or are the task's in its order.

    Args:
        header: "present", "absent", or None to see: a header names fields, and all required ones.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ArgumentError(f"the body is no CSV: {error}") from error
    if not rows:
        return []
    if [] in rows:
        raise ArgumentError(f"row {rows.index([]) + 1} is empty, expected a record in each")
    known = fields_of(task)
    looks_like_one = set(rows[0]) <= set(known) and set(task.required) <= set(rows[0])
    if header not in (None, "present", "absent"):
        raise ArgumentError(f"the header of text/csv is {header!r}, expected present or absent")
    if header == "present" or (header is None and looks_like_one):
        names, first = rows[0], 2
        rows = rows[1:]
    else:
        names, first = list(known)[: len(rows[0])], 1
    if len(names) < len(task.required) or len(set(names)) < len(names):
        raise ArgumentError(
            f"the CSV has the columns {', '.join(names)}, expected {', '.join(known)} in this "
            "order, or a header that names them"
        )
    return [_row(row, number, names, task) for number, row in enumerate(rows, first)]


def _row(row: list[str], number: int, names: list[str], task: Task) -> Record:
    if len(row) != len(names):
        raise ArgumentError(
            f"row {number} has {len(row)} columns, expected {len(names)}: {', '.join(names)}"
        )
    record = dict(zip(names, row, strict=True))
    for name in record.keys() & fields_of(task).keys():
        if is_list(task, name):
            record[name] = json_from(record[name], f"{name} of row {number}")
    return record


def accepted(header: str, own: str) -> tuple[str, dict[str, str]]:
    """The media type to answer in, and its parameters: the client's favourite that can be written.

    Args:
        own: what the request is in, for a client that takes anything.

    Raises:
        NotWritable: it takes none of ``WRITABLE``.
    """
    own = own if own in WRITABLE else JSON_LINES
    best: tuple[float, str, dict[str, str]] = (0.0, "", {})
    for part in header.split(",") if header.strip() else ["*/*"]:
        kind, notes = media_type(part, "*/*")
        try:
            weight = float(notes.pop("q", "1"))
        except ValueError:
            weight = 0.0
        if kind == "*/*" or (kind.endswith("/*") and own.startswith(kind[:-1])):
            kind = own
        elif kind == "application/*":
            kind = JSON
        elif kind == "text/*":
            kind = CSV
        if kind in WRITABLE and weight > best[0]:
            best = (weight, kind, notes)
    if not best[1]:
        raise NotWritable(f"Accept is {header[:80]!r}, expected one of {', '.join(WRITABLE)}")
    return best[1:]


def written(answers: Sequence[Mapping[str, Any]], kind: str, form: str, header: bool) -> str:
    """Answers in a media type, in their order.

    Args:
        form: of JSON, see ``Invocation``. header: of CSV: whether there is one.
    """
    if kind == JSON:
        whole: Any = answers[0] if form == ONE else list(answers)
        return _json(whole if form in (ONE, MANY) else {form: whole})
    if kind == JSON_LINES:
        return "".join(f"{_json(answer)}\n" for answer in answers)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    names = list(dict.fromkeys(name for answer in answers for name in answer if name != "cut"))
    names.append("cut")  # always, so that every part of a long job has the same columns
    if header:
        writer.writerow(names)
    for answer in answers:
        values = {"cut": False, **answer}
        writer.writerow([_cell(values.get(name)) for name in names])
    return file.getvalue()


def _cell(value: Any) -> str:
    """Texts as they are, nothing for what is missing, all else as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
