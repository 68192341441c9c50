"""How a column of labels is read: as classes, as lists of labels, or as numbers."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.options import MULTI, REGRESSION, SINGLE
from xlnet_fast.train.finetune.task import (
    Split,
    is_missing,
    known_names,
    number_of,
    ordered_names,
)

_SEPARATOR = "|"  # of the labels in a cell of a table
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
_LISTS = tuple(
    kind for name in ("List", "LargeList", "Sequence") if (kind := getattr(datasets, name, None))
)


def problem_of(split: Split, wanted: str) -> str:
    """What the label column of the training rows asks for, unless the user says it.

    Lists of labels, or a table's cells that all are lists: several labels a row. Numbers of
    which one has a fraction: regression. All else: classes, whole numbers too.

    Raises:
        ArgumentError: numbers with fractions beside words, lists beside something else or where
            something else is wanted, or neither texts, numbers nor lists.
    """
    column = split.columns["label"]
    feature, values = split.rows.features[column], split.rows[column]
    lists = isinstance(feature, (list, *_LISTS))
    if not lists and not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        lists = _of_one_kind(split, values)
    if lists and wanted not in ("auto", MULTI):
        raise ArgumentError(
            f"the labels of {split.source} are lists, which --problem-type {wanted} cannot take"
        )
    if wanted != "auto":
        return wanted
    if lists or _all_lists(values):
        return MULTI
    if isinstance(feature, datasets.ClassLabel):
        return SINGLE
    numbers = {i: number_of(value) for i, value in enumerate(values) if not is_missing(value)}
    if not any(_has_fraction(number) for number in numbers.values()):
        return SINGLE
    word = next((i for i, number in numbers.items() if number is None), None)
    if word is not None:
        raise ArgumentError(
            f"the labels of {split.source} are numbers with fractions, and {split.row_name(word)} "
            f"has {values[word]!r}: mend it, or say by --problem-type {SINGLE} that all are names"
        )
    return REGRESSION


def _of_one_kind(split: Split, values: Iterable[Any]) -> bool:
    """Whether a column of values of any type, as JSON may have, is of lists and not of scalars."""
    first: dict[bool, tuple[int, Any]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Mapping):
            raise ArgumentError(
                f"{split.row_name(i)} has the label {value!r}, expected a text, a number or a list"
            )
        if value is not None:
            first.setdefault(isinstance(value, list), (i, value))
    if len(first) > 1:
        told = " and ".join(f"{split.row_name(i)} has {value!r}" for i, value in first.values())
        raise ArgumentError(f"labels must be lists in all rows or in none, but {told}")
    return True in first


def _has_fraction(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and not number.is_integer()


def _all_lists(values: Iterable[Any]) -> bool:
    """Whether the cells of a table that are not empty hold lists, and some do."""
    found = False
    for value in values:
        if is_missing(value):
            continue
        if not isinstance(value, str) or _written_list(value) is None:
            return False
        found = True
    return found


def _written_list(text: str) -> list[Any] | None:
    """That of a table's cell: ["a", "b"] as JSON has it, or ['a', 'b'] as pandas writes it."""
    if not text.lstrip().startswith("["):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            content = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return content if isinstance(content, list) else None
    return None


def finite_number(value: Any, where: str) -> float:
    """The label of a regression; raises ``ArgumentError``."""
    if is_missing(value) and not isinstance(value, float):
        raise ArgumentError(f"{where} has no label")
    number = number_of(value)
    if number is None or not math.isfinite(number):
        raise ArgumentError(f"{where} has the label {value!r}, expected a number such as 0.5")
    return number


def several_names(value: Any, names: Sequence[str] | None, where: str) -> list[str]:
    """The labels of a row: a list, or a table's cell that holds ["a", "b"] or a|b.

    An empty list or cell: none of the labels applies.

    Args:
        names: those of a column of ids.

    Raises:
        ArgumentError: there is no list, it holds something else than labels, or one twice.
    """
    items = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        items = _written_list(value)
    elif isinstance(value, str):
        items = [part.strip() for part in value.split(_SEPARATOR)] if value.strip() else []
    if not isinstance(items, (list, tuple)):
        raise ArgumentError(
            f'{where} has {value!r} for its labels, expected a list such as ["a", "b"], or [] '
            "if none applies"
        )
    found = [_one_name(item, names, where) for item in items]
    for name in found:
        if found.count(name) > 1:
            raise ArgumentError(
                f"{where} has the label {name!r} twice: {list(items)!r} must be the names of the "
                "labels that apply, no row of zeros and ones (of such columns: --column "
                "label=NAME,NAME,...)"
            )
    return found


def _one_name(item: Any, names: Sequence[str] | None, where: str) -> str:
    if is_missing(item) or isinstance(item, (float, list, tuple, Mapping)):
        raise ArgumentError(f"{where} has {item!r} in its list of labels, expected a name")
    if names is not None and isinstance(item, int) and item >= 0:
        return names[item]
    return str(item)


def names_of_lists(split: Split) -> list[str]:
    """The labels of a column of lists: its own names, else what the rows have, in order.

    Raises:
        ArgumentError: as :func:`several_names`, or every row has every label.
    """
    column = split.columns["label"]
    names = known_names(split.rows.features[column])
    if names is not None:
        return names
    rows = [
        several_names(value, None, split.row_name(i)) for i, value in enumerate(split.rows[column])
    ]
    found = ordered_names(name for row in rows for name in row)
    if found and all(len(row) == len(found) for row in rows):
        raise ArgumentError(
            f"all rows of {split.source} have all of the labels {shortened(found)}: a list names "
            "the labels that apply, it is no row of zeros and ones"
        )
    return found


def joined_columns(rows: datasets.Dataset, source: str, wanted: str) -> datasets.Dataset:
    """A column of lists, called ``wanted``, of the columns of 0 and 1 that it names: "a,b,c".

    Rows that have none of them stay as they are: a test's may be without labels.

    Raises:
        ArgumentError: some of the columns are missing, or hold something else.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = [name for name in names if name not in rows.column_names]
    if wanted in rows.column_names or len(names) < 2 or len(missing) == len(names):
        return rows
    if missing:
        raise ArgumentError(
            f"{source} has no column {missing[0]!r} for label; it has: "
            f"{', '.join(rows.column_names)}"
        )
    lists: list[list[int]] = [[] for _ in range(len(rows))]
    for k, name in enumerate(names):
        for i, value in enumerate(rows[name]):
            word = "" if value is None else str(value).strip().lower()
            if value is None or word not in (*_YES, *_NO):
                raise ArgumentError(
                    f"row {i + 1} of {source} has {value!r} in {name!r}, expected 1 or 0"
                )
            if word in _YES:
                lists[i].append(k)
    feature = datasets.Sequence(datasets.ClassLabel(names=names))
    return rows.add_column(wanted, lists, feature=feature)


def shortened(names: Sequence[str], most: int = 10) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
