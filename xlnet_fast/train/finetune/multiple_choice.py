"""Which of several endings or answers fits a text, as in RACE and SWAG."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.data import find_columns
from xlnet_fast.train.finetune.sequences import ending
from xlnet_fast.train.finetune.task import (
    Batch,
    OneLabelTask,
    Report,
    Split,
    known_names,
    mean_class_loss,
    probabilities,
    text_of,
)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERED = re.compile(r"(?:ending|choice|option)_?(\d+)")


class MultipleChoice(OneLabelTask):
    """Each choice is one sequence: passage <sep> question and choice <sep> <cls>.

    As in the original run_race.py, a choice takes the place of "_" in the question, or follows it.
    The longer one of both parts is cut if the sequence is too long.
    """

    architecture = "XLNetForMultipleChoice"
    required = ("passage", "choices", "choice")
    optional = ("stem",)
    label_role = "choice"
    metric_names = ("accuracy",)
    number_of_choices = 0

    def split(self, name: str, source: str, rows: datasets.Dataset) -> Split:
        """As the base class; columns ending0, ending1, ... become one column of lists."""
        return super().split(name, source, _joined(rows, source, self.options.columns()))

    def fit_labels(self, split: Split) -> str:
        """The number of choices is that of the first training row."""
        self.number_of_choices = len(_choices(split.rows[0], split.columns, split.row_name(0)))
        return f"one of {self.number_of_choices} choices"

    def encode(self, split: Split) -> datasets.Dataset:
        """One feature a row: a list of ids and of segments for each choice."""
        columns = split.columns
        names = known_names(split.rows.features[columns["choice"]]) if split.labelled else None

        def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            keys = ("input_ids", "token_type_ids", "cut", *(("label",) if split.labelled else ()))
            features: dict[str, list[Any]] = {key: [] for key in keys}
            for k, index in enumerate(indices):
                row = {name: values[k] for name, values in batch.items()}
                where = split.row_name(index)
                choices = self._checked_choices(row, columns, where)
                passage = text_of(row[columns["passage"]], "passage", where)
                stem = str(row[columns["stem"]] or "") if "stem" in columns else ""
                coded = self.tokenizer(
                    [passage] * len(choices),
                    [ending(stem, choice) for choice in choices],
                    truncation=True,
                    max_length=self.options.max_length,
                )
                features["input_ids"].append(coded["input_ids"])
                features["token_type_ids"].append(coded["token_type_ids"])
                features["cut"].append(any(e.overflowing for e in coded.encodings))
                if split.labelled:
                    value = row[columns["choice"]]
                    features["label"].append(_choice_id(value, names, len(choices), where))
            return features

        return self.map_rows(split, encode)

    def _checked_choices(
        self, row: Mapping[str, Any], columns: Mapping[str, str], where: str
    ) -> list[str]:
        choices = _choices(row, columns, where)
        if len(choices) != self.number_of_choices:
            raise ArgumentError(
                f"{where} has {len(choices)} choices, the first training row has "
                f"{self.number_of_choices}; all rows need as many"
            )
        return choices

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """Inputs: [B, choices, L], ``labels``: [B]."""
        flat = [
            {"input_ids": ids, "token_type_ids": segments}
            for feature in features
            for ids, segments in zip(feature["input_ids"], feature["token_type_ids"], strict=True)
        ]
        shape = (len(features), len(features[0]["input_ids"]), -1)
        batch = {name: values.view(shape) for name, values in self.pad(flat).items()}
        return self.with_labels(batch, features)

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Loss and accuracy."""
        accuracy = measures.classification_metrics(labels, predictions.argmax(-1))["accuracy"]
        return {"loss": mean_class_loss(predictions, labels), "accuracy": accuracy}

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each row's choice, counted from 0, and its probability."""
        likely = probabilities(predictions)
        rows: list[dict[str, Any]] = [
            {"prediction": int(p.argmax()), "probability": round(float(p.max()), 6)} for p in likely
        ]
        if labels is not None:
            for row, label in zip(rows, labels, strict=True):
                row["label"] = int(label)
        return Report(rows)


def _joined(rows: datasets.Dataset, source: str, given: Mapping[str, str]) -> datasets.Dataset:
    """One column of lists instead of several of texts: ending0, ... or choices=NAME,NAME,..."""
    names = [name.strip() for name in given.get("choices", "").split(",") if name.strip()]
    if len(names) < 2:
        if names or "choices" in find_columns(rows, source, (), ("choices",), {}):
            return rows
        numbers = {name: _NUMBERED.fullmatch(name) for name in rows.column_names}
        found = {name: int(match[1]) for name, match in numbers.items() if match}
        names = sorted(found, key=found.__getitem__)
    for name in names:
        if name not in rows.column_names:
            raise ArgumentError(
                f"{source} has no column {name!r} for choices; it has: "
                f"{', '.join(rows.column_names)}"
            )
    if not names:
        return rows
    lists = [list(values) for values in zip(*(rows[name] for name in names), strict=True)]
    column = given.get("choices", "choices")
    return rows.remove_columns(names).add_column(column, lists)


def _choices(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> list[str]:
    value = row[columns["choices"]]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if isinstance(value, Mapping):  # ARC and CommonsenseQA: {"text": [...], "label": [...]}
        value = value.get("text")
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        raise ArgumentError(f"{where} has no list of two or more choices")
    return [text_of(choice, "text in one of its choices", where) for choice in value]


def _choice_id(value: Any, names: Sequence[str] | None, count: int, where: str) -> int:
    """A number from 0 or a letter from A, as an index."""
    text = str(names[value] if names and isinstance(value, int) and value >= 0 else value).strip()
    if len(text) == 1 and text.upper() in _LETTERS:
        index = _LETTERS.index(text.upper())
    elif text.isdecimal():
        index = int(text)
    else:
        index = -1
    if not 0 <= index < count:
        raise ArgumentError(
            f"{where} has the label {value!r}, expected 0 to {count - 1} or A to "
            f"{_LETTERS[count - 1]}"
        )
    return index
