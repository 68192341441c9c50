"""What the tasks on a text, or on a pair of texts, have in common, whatever their labels are."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor

from xlnet_fast.train.finetune.labels import joined_columns
from xlnet_fast.train.finetune.task import Batch, Split, Task, known_names, texts_of


class TextTask(Task):
    """Longer texts are cut, the longer one of a pair first.

    At the end, or at the beginning where the tokenizer's ``truncation_side`` is "left".
    """

    architecture = "XLNetForSequenceClassification"
    required = ("text", "label")
    optional = ("text_pair",)
    label_role = "label"

    def split(self, name: str, source: str, rows: datasets.Dataset) -> Split:
        """As the base class; several columns of 0 and 1 become one column of lists."""
        wanted = self.options.columns().get("label", "")
        return super().split(name, source, joined_columns(rows, source, wanted))

    @abc.abstractmethod
    def encoded_label(self, value: Any, names: Sequence[str] | None, where: str) -> Any:
        """A row's label as a feature; ``names``: of a column of ids. Raises ``ArgumentError``."""

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
                features["label"] = [
                    self.encoded_label(value, names, place)
                    for value, place in zip(batch[columns["label"]], where, strict=True)
                ]
            return features

        return self.map_rows(split, encode)


class TargetTask(TextTask):
    """A text task whose labels are not one class a row: ``targets`` beside the usual ``labels``.

    The latter only mark the rows: they are 0, or ``IGNORED`` where a row fills up a batch, so that
    any number is a target, -100 too.
    """

    @abc.abstractmethod
    def targets(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """The labels of rows as the loss takes them, first axis: the batch's."""

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """``labels``: [B], 0 for each row that has labels; ``targets``: what they are."""
        batch = self.pad(features)
        if "label" in features[0]:
            batch["labels"] = torch.zeros(len(features), dtype=torch.long)
            batch["targets"] = self.targets(features)
        return batch
