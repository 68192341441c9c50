"""Which columns of an input are the fields of a task's records, and which are repeated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.options import PredictOptions
from xlnet_fast.predict.records import TEXT, Row, Rows
from xlnet_fast.predict.tasks.base import Task, text_field
from xlnet_fast.train.shared.columns import choice_columns, match_columns

ID, INPUT = "id", "input"
"""Keys of an answer: the record's own name, and the columns that are repeated."""


@dataclass(frozen=True)
class Survey:
    """What is known of an input when it was read once.

    Attributes:
        count: of its records. names: of its columns, in the order in which they come.
    """

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a record is made of a row.

    Attributes:
        columns: field to column, or to the columns that each hold an item of its list.
        needed: the fields that must be there, with their types.
        lists: the fields that are lists of texts.
        id: the column that names a record, if there is one.
        kept: the columns that are repeated beside the answer.
    """

    columns: Mapping[str, str | Sequence[str]]
    needed: Mapping[str, str]
    lists: frozenset[str]
    id: str | None
    kept: Sequence[str]

    def record(self, row: Row) -> dict[str, Any]:
        """The task's record; fields that have no value, or an empty optional one, are left out."""
        record = {}
        for name, column in self.columns.items():
            value: Any
            if isinstance(column, str):
                value = row.values.get(column)
            else:
                value = [row.values[one] for one in column if row.values.get(one) is not None]
            if name in self.lists:
                value = _listed(name, value)
            if value is not None and (value != "" or name in self.needed):
                record[name] = value
        return record

    def problem(self, row: Row) -> str:
        """What is wrong with a record, as far as it can be known without a model; else ""."""
        if row.error:
            return row.error
        record = self.record(row)
        for name, kind in self.needed.items():
            if name not in record:
                return f"no {name}"
            if kind == "text":
                try:
                    text_field(record, name)
                except ArgumentError as error:
                    return str(error)
            elif not record[name]:
                return f"{name} is empty"
        return ""

    def answer(self, row: Row, found: Mapping[str, Any]) -> dict[str, Any]:
        """An answer as it is written: which record's it is, what is repeated of it, what it is."""
        head: dict[str, Any] = {"row": row.number}
        if self.id is not None and self.id in row.values:
            head[ID] = row.values[self.id]
        kept = {name: row.values[name] for name in self.kept if name in row.values}
        if kept:
            head[INPUT] = kept
        return {**head, **found}

    def told(self) -> str:
        """Which columns are read, for the user: names are found by custom."""
        parts = [
            f"{name} from {column if isinstance(column, str) else ', '.join(column)}"
            for name, column in self.columns.items()
        ]
        return ", ".join(parts)


def survey(rows: Rows) -> Survey:
    """Read an input once, from its beginning to its end.

    Raises:
        ArgumentError: it has no records, or cannot be read from some place on.
    """
    count, names = 0, dict[str, None]()
    for row in rows:
        count += 1
        names |= dict.fromkeys(row.values)
    if count == 0:
        raise ArgumentError(f"{rows.name} holds no records")
    return Survey(count, tuple(names))


def layout_of(
    task: type[Task], options: PredictOptions, names: Sequence[str], source: str
) -> Layout:
    """Find the columns of a task's fields.

    Raises:
        ArgumentError: one is missing, or one that was named is not there or of no use.
    """
    instead = getattr(task, "instead", {})
    fields = {**task.required, **instead, **task.optional}
    given = options.columns()
    odd = sorted(set(given) - {*fields, ID})
    if odd:
        raise ArgumentError(
            f"{task.name} has no field {odd[0]!r} for a column; it has: {', '.join([*fields, ID])}"
        )
    missing = [name for name in options.kept() if name not in names]
    if missing:
        raise ArgumentError(f"{source} has no column {missing[0]!r}; it has: {', '.join(names)}")
    kept = tuple(names) if options.keep_all else options.kept()
    if options.input_format == "text":
        if len(task.required) != 1 or "text" not in task.required.values():
            raise ArgumentError(
                f"a text file has one field, and {task.name} reads {', '.join(task.required)}: "
                "give a .csv or .jsonl file"
            )
        return Layout(dict.fromkeys(task.required, TEXT), task.required, frozenset(), None, kept)
    needed = _needed(task, instead, names, given)
    optional = [name for name in task.optional if name not in needed]
    found = _found(names, source, needed, [*optional, ID], given)
    name = found.pop(ID, None)
    lists = frozenset(field for field, kind in fields.items() if kind != "text")
    return Layout(found, needed, lists, name if isinstance(name, str) else None, kept)


def _needed(
    task: type[Task],
    instead: Mapping[str, str],
    names: Sequence[str],
    given: Mapping[str, str],
) -> Mapping[str, str]:
    """The required fields, or one that stands in their place: if it is named, or alone there."""
    for name, kind in instead.items():
        if name in given:
            return {name: kind}
    for name, kind in instead.items():
        there = match_columns(names, "", (), [*task.required, name], given)
        if name in there and not set(task.required) & set(there):
            return {name: kind}
    return task.required


def _found(
    names: Sequence[str],
    source: str,
    needed: Iterable[str],
    optional: Iterable[str],
    given: Mapping[str, str],
) -> dict[str, str | Sequence[str]]:
    """Field to column or, of choices, columns."""
    several: dict[str, Sequence[str]] = {}
    if "choices" in needed:
        columns = choice_columns(names, source, given.get("choices", ""))
        if columns:
            several["choices"] = columns
    given = {name: column for name, column in given.items() if name not in several}
    rest = [name for name in needed if name not in several]
    single = match_columns(names, source, rest, list(optional), given)
    return {**single, **several}


def _listed(name: str, value: Any) -> Any:
    """A list's value as a table or a data set may have it; what is none is left for the task."""
    if isinstance(value, Mapping):  # ARC and CommonsenseQA: {"text": [...], "label": [...]}
        return value.get("text")
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value.split() if name == "tokens" else value
