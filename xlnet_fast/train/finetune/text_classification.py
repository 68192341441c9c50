"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.labels import shortened
from xlnet_fast.train.finetune.options import REGRESSION, SINGLE
from xlnet_fast.train.finetune.task import (
    Batch,
    OneLabelTask,
    Report,
    Split,
    known_names,
    label_id,
    mean_class_loss,
    name_of,
    number_of,
    ordered_names,
    probabilities,
)
from xlnet_fast.train.finetune.texts import TextTask


class TextClassification(OneLabelTask, TextTask):
    """Each text is of one class."""

    problem_type = SINGLE
    metric_names = (
        "accuracy", "f1_macro", "f1_weighted", "precision_macro", "precision_weighted",
        "recall_macro", "recall_weighted",
    )  # fmt: skip

    def fit_labels(self, split: Split) -> str:
        """The names of a ``ClassLabel`` column, else what the training rows have, in order."""
        column = split.columns["label"]
        names = known_names(split.rows.features[column])
        whole = False
        if names is None:
            found = (name_of(value, None) for value in split.rows[column])
            names = ordered_names(name for name in found if name is not None)
            whole = all(number_of(name) is not None for name in names)
        self.labels = names
        if len(self.labels) < 2:
            raise ArgumentError(
                f"the labels of {split.source} are {self.labels}: at least two are needed, each "
                "row with one of them"
            )
        other = f"; they are numbers with --problem-type {REGRESSION}" if whole else ""
        return f"{len(names)} classes, {shortened(names)}{other}"

    def encoded_label(self, value: Any, names: Sequence[str] | None, where: str) -> int:
        """The id of the class."""
        return label_id(name_of(value, names), self.labels, where)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """``labels``: [B]."""
        return self.with_labels(self.pad(features), features)

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Loss, accuracy, precision, recall and F1."""
        predicted = predictions.argmax(-1)
        loss = mean_class_loss(predictions, labels)
        return {"loss": loss, **measures.classification_metrics(labels, predicted)}

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each row's label, predicted label and its probability."""
        likely = probabilities(predictions)
        predicted = likely.argmax(-1)
        rows: list[dict[str, Any]] = [
            {"prediction": self.labels[k], "probability": round(float(p[k]), 6)}
            for k, p in zip(predicted, likely, strict=True)
        ]
        if labels is None:
            return Report(rows)
        for row, label in zip(rows, labels, strict=True):
            row["label"] = self.labels[label]
        details = {"per_label": measures.per_label(labels, predicted, self.labels)}
        return Report(rows, details, measures.confusion(labels, predicted, self.labels))
