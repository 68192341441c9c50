"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.task import (
    Batch,
    OneLabelTask,
    Report,
    Split,
    known_names,
    label_id,
    mean_class_loss,
    name_of,
    ordered_names,
    probabilities,
    texts_of,
)


class TextClassification(OneLabelTask):
    """Longer texts are cut, the longer one of a pair first.

    At the end, or at the beginning where the tokenizer's ``truncation_side`` is "left".
    """

    architecture = "XLNetForSequenceClassification"
    required = ("text", "label")
    optional = ("text_pair",)
    label_role = "label"
    metric_names = (
        "accuracy", "f1_macro", "f1_weighted", "precision_macro", "precision_weighted",
        "recall_macro", "recall_weighted",
    )  # fmt: skip

    def fit_labels(self, split: Split) -> None:
        """The names of a ``ClassLabel`` column, else what the training rows have, in order."""
        column = split.columns["label"]
        names = known_names(split.rows.features[column])
        if names is None:
            found = (name_of(value, None) for value in split.rows[column])
            names = ordered_names(name for name in found if name is not None)
        self.labels = names
        if len(self.labels) < 2:
            raise ArgumentError(
                f"the labels of {split.source} are {self.labels}: at least two are needed, each "
                "row with one of them"
            )

    def encode(self, split: Split) -> datasets.Dataset:
        """One feature a row: ids, segments, label, whether it was cut."""
        columns = split.columns
        names = known_names(split.rows.features[columns["label"]]) if split.labelled else None

        def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            where = [split.row_name(i) for i in indices]
            texts = [
                texts_of(batch[columns[role]], role, where)
                for role in ("text", "text_pair")
                if role in columns
            ]
            coded = self.tokenizer(*texts, truncation=True, max_length=self.options.max_length)
            features = {
                "input_ids": coded["input_ids"],
                "token_type_ids": coded["token_type_ids"],
                "cut": [bool(encoding.overflowing) for encoding in coded.encodings],
            }
            if split.labelled:
                found = [name_of(value, names) for value in batch[columns["label"]]]
                features["label"] = [
                    label_id(name, self.labels, place)
                    for name, place in zip(found, where, strict=True)
                ]
            return features

        return self.map_rows(split, encode)

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
