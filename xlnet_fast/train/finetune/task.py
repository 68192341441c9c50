"""What the tasks have in common: labels, splits, and the interface between a task and the run."""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast._version import __version__
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.data import find_columns
from xlnet_fast.train.finetune.options import FinetuneOptions
from xlnet_fast.train.shared.tokenizers import forget_truncation

IGNORED = -100
_UNTOLD = ("-1", "-1.0")  # how published tests keep their labels to themselves
_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)
_SHARED = ("options", "tokenizer")  # attributes that are not learnt from the data
Batch = dict[str, Tensor]


@dataclass
class Split:
    """Rows of one purpose, and what a model is fed of them.

    Attributes:
        name: "train", "eval" or "test".
        source: where the rows come from, for messages.
        rows: as they were read.
        columns: role to column name.
        labelled: whether the rows have labels; only those of "test" may have none.
        features: one row for each sequence (or window, or question) fed to the model.
        origin: where the rows are a part of a source's, that source and their places in it.
    """

    name: str
    source: str
    rows: datasets.Dataset
    columns: dict[str, str]
    labelled: bool
    features: datasets.Dataset | None = None
    origin: tuple[str, Sequence[int]] | None = None

    def row_name(self, index: int) -> str:
        """A row for messages, counted from 1, as it stands in the file."""
        if self.origin is None:
            return f"row {index + 1} of {self.source}"
        source, places = self.origin
        return f"row {places[index] + 1} of {source}"


@dataclass
class Report:
    """Results of one split that are more than a number.

    Attributes:
        details: for metrics.json.
        rows: one mapping for each row of the data, for the file of predictions.
        confusion: counts, [label, predicted label], or None.
        plots: file name to what draws it, called with a path and a title.
    """

    rows: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    confusion: np.ndarray | None = None
    plots: Mapping[str, Callable[[Path, str], None]] = field(default_factory=dict)


class Task(abc.ABC):
    """One task: from rows to features, from a model's outputs to a loss, metrics and predictions.

    The features of a batch are left-padded. Its "labels" hold ``IGNORED`` where nothing is to be
    learnt, and the number of other elements is what the loss is divided by, summed over a global
    batch: all its accumulation steps in all processes.
    """

    architecture: ClassVar[str]  # the class of transformers that is fine-tuned
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    label_role: ClassVar[str]
    answer_roles: ClassVar[tuple[str, ...]] = ()  # of which a test may have none: the label's
    problem_type: ClassVar[str | None] = None  # where the task has several
    number_of_outputs: ClassVar[int | None] = None  # of a head without labels
    metric_names: tuple[str, ...]  # the first chooses the best checkpoint, unless told otherwise
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    least_length = 1  # positions that the head needs, padding included

    def __init__(self, options: FinetuneOptions, tokenizer: Any) -> None:
        """The tokenizer is HF's XLNetTokenizer."""
        self.options = options
        self.tokenizer = tokenizer
        self.labels: list[str] = []

    def split(self, name: str, source: str, rows: datasets.Dataset) -> Split:
        """Find the columns; raises ``ArgumentError`` where one is missing."""
        given = self.options.columns()
        unknown = set(given) - {*self.required, *self.optional}
        if unknown:
            roles = ", ".join((*self.required, *self.optional))
            raise ArgumentError(
                f"{self.options.task} has no column role {sorted(unknown)[0]!r}; it has: {roles}"
            )
        required, optional = self.required, self.optional
        if name == "test":  # it may be without what is to be predicted
            absent = [
                role
                for role in self.answer_roles or (self.label_role,)
                if role in given and given[role] not in rows.column_names
            ]
            given = {role: column for role, column in given.items() if role not in absent}
            named_otherwise = self.label_role in absent
            required = tuple(role for role in required if role != self.label_role)
            optional = tuple(role for role in optional if role not in absent)
            optional += () if named_otherwise else (self.label_role,)
        columns = find_columns(rows, source, required, optional, given)
        labelled = self.label_role in columns
        if name == "test" and labelled:
            labelled = not self._without_labels(rows[columns[self.label_role]])
        return Split(name, source, rows, columns, labelled)

    def _without_labels(self, values: Sequence[Any]) -> bool:
        """Whether a test leaves its labels out: they are missing, or all are -1 and none is -1."""
        if all(self.is_missing(value) for value in values):
            return True
        return "-1" not in self.labels and all(str(value) in _UNTOLD for value in values)

    @staticmethod
    def is_missing(value: Any) -> bool:
        """Whether a row of a test has no label."""
        return is_missing(value)

    def fit_labels(self, split: Split) -> str:
        """Learn the names of the labels from the training rows; says in a phrase what they are."""
        return ""

    def adopt(self, labels: Sequence[str]) -> None:
        """Take the labels of a trained model, in its order."""
        self.labels = list(labels)

    @abc.abstractmethod
    def encode(self, split: Split) -> datasets.Dataset:
        """The features of a split; raises ``ArgumentError`` for a row that cannot be used."""

    @abc.abstractmethod
    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """A left-padded batch."""

    def model_inputs(self, batch: Batch, training: bool) -> Batch:
        """What of a batch the model's forward gets; labels are not among it."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: batch[name] for name in names}

    @abc.abstractmethod
    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """Sum of the losses of a batch over ``number_of_labels``."""

    @abc.abstractmethod
    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """What metrics and predictions are made of; first axis: the batch's."""

    @abc.abstractmethod
    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """The numbers of an evaluation."""

    @abc.abstractmethod
    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Details and predictions at the end of a run."""

    def map_rows(self, split: Split, encode: Any) -> datasets.Dataset:
        """``encode(batch of columns, row indices) -> features`` over all rows.

        The result is kept in the cache of `datasets` under a name made of the rows and of all that
        decides over the features, so that several processes and later runs share it.
        """
        options = self.options
        learnt = {name: value for name, value in vars(self).items() if name not in _SHARED}
        recipe = (
            split.rows._fingerprint, __version__, options.task, type(self).__name__, split.name,
            sorted(split.columns.items()), split.labelled, sorted(learnt.items()),
            options.max_length, options.stride, options.truncate,
            self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.truncation_side,
        )  # fmt: skip
        rows = split.rows.select_columns(list(dict.fromkeys(split.columns.values())))
        try:
            return rows.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                new_fingerprint=datasets.fingerprint.Hasher.hash(recipe),
                # Else a feature takes the type of a column of its name: ids those of truth values.
                try_original_type=False,
            )
        finally:
            forget_truncation(self.tokenizer)

    def pad(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """The model's inputs, padded on the left to the longest, or to ``least_length``."""
        names = ("input_ids", "token_type_ids")
        rows = [{name: feature[name] for name in names} for feature in features]
        length = max(self.least_length, *(len(row["input_ids"]) for row in rows))
        padded = self.tokenizer.pad(
            rows, padding="max_length", max_length=length, return_tensors="pt"
        )
        return dict(padded)


class OneLabelTask(Task):
    """A task with one label a row: ``labels`` [B], logits [B, classes]."""

    @staticmethod
    def with_labels(batch: Batch, features: Sequence[Mapping[str, Any]]) -> Batch:
        """The batch and the labels of its rows, if they have any."""
        if "label" in features[0]:
            batch["labels"] = torch.tensor([feature["label"] for feature in features])
        return batch

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """Cross entropy over the classes."""
        return class_loss(outputs.logits, batch["labels"], number_of_labels)

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits, [B, classes]."""
        return (outputs.logits.float(),)


def text_of(value: Any, role: str, where: str) -> str:
    """A text that is there and not empty; raises ``ArgumentError``."""
    if value is None or not str(value).strip():
        raise ArgumentError(f"{where} has no {role}")
    return str(value)


def texts_of(values: Sequence[Any], role: str, where: Sequence[str]) -> list[str]:
    """``text_of`` for the rows of a batch."""
    return [text_of(value, role, place) for value, place in zip(values, where, strict=True)]


def is_missing(value: Any) -> bool:
    """None, an empty cell, or the NaN that stands for one in a column of numbers."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def number_of(value: Any) -> float | None:
    """A number, or what a table has of one; None for all else, truth values too."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    return float(text) if _NUMBER.fullmatch(text) else None


def known_names(feature: Any) -> list[str] | None:
    """The names of a ``ClassLabel`` column, or of a list of them; None for other columns."""
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def ordered_names(values: Iterator[str]) -> list[str]:
    """Distinct names, as numbers if all are, else as words."""
    names = sorted(set(values))
    numbers = {name: number for name in names if (number := number_of(name)) is not None}
    if len(numbers) < len(names) or any(map(math.isnan, numbers.values())):
        return names
    return sorted(names, key=lambda name: numbers[name])


def name_of(value: Any, names: Sequence[str] | None) -> str | None:
    """A label as text; an id becomes the column's own name for it, None and a missing id None."""
    if is_missing(value):
        return None
    if names is not None and isinstance(value, int):
        return names[value] if value >= 0 else None
    return str(value)


def label_id(name: str | None, labels: Sequence[str], where: str) -> int:
    """The id of a label; raises ``ArgumentError`` for one that is not among the training labels."""
    if name is None:
        raise ArgumentError(f"{where} has no label")
    if name not in labels:
        known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise ArgumentError(f"{where} has the label {name!r}; the training data have: {known}")
    return labels.index(name)


def class_loss(logits: Tensor, labels: Tensor, number_of_labels: Tensor | int) -> Tensor:
    """Cross entropy over the last axis, summed and divided by a number of labels; in fp32."""
    flat = logits.float().view(-1, logits.shape[-1])
    total = F.cross_entropy(flat, labels.view(-1), ignore_index=IGNORED, reduction="sum")
    return total / number_of_labels


def mean_class_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross entropy of an evaluation, [n, classes] and [n]."""
    return float(F.cross_entropy(torch.from_numpy(logits).float(), torch.from_numpy(labels)))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    return np.asarray(torch.from_numpy(logits).float().softmax(-1))
