"""One label for each word of a sentence; entities where the labels are chunk tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.chunks import has_entities
from xlnet_fast.train.finetune.labels import shortened
from xlnet_fast.train.finetune.sequences import coded_words
from xlnet_fast.train.finetune.task import (
    IGNORED,
    Batch,
    Report,
    Split,
    Task,
    class_loss,
    is_missing,
    known_names,
    label_id,
    name_of,
    ordered_names,
)


class TokenClassification(Task):
    """A word's first piece carries its label. Too long a sentence is refused, or cut if asked to.

    Words that were cut off have no prediction and are left out of the metrics.
    """

    architecture = "XLNetForTokenClassification"
    required = ("tokens", "tags")
    label_role = "tags"

    def __init__(self, options: Any, tokenizer: Any) -> None:
        """Metrics are those of words until the labels are known."""
        super().__init__(options, tokenizer)
        self.has_entities = False

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The main one first: that of entities, if the labels have any."""
        words = ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro")
        names = ("entity_f1", "entity_precision", "entity_recall")
        return (*names, *words) if self.has_entities else words

    def split(self, name: str, source: str, rows: datasets.Dataset) -> Split:
        """As the base class; a CoNLL file that is read as a table is told by its name."""
        try:
            return super().split(name, source, rows)
        except ArgumentError as error:
            if not source.endswith((".csv", ".tsv")):
                raise
            raise ArgumentError(
                f"{error}; a CoNLL file, which names no columns, must be called .conll"
            ) from error

    @staticmethod
    def is_missing(value: Any) -> bool:
        """Whether a sentence has no tags."""
        return all(is_missing(tag) or str(tag) in ("-1", str(IGNORED)) for tag in _listed(value))

    def fit_labels(self, split: Split) -> str:
        """The names of a ``ClassLabel`` column, else what the training rows have, in order."""
        column = split.columns["tags"]
        names = known_names(split.rows.features[column])
        if names is None:
            tags = (tag for row in split.rows[column] for tag in _listed(row))
            names = ordered_names(str(tag) for tag in tags)
        self.labels = names
        self.has_entities = has_entities(names)
        if len(names) < 2:
            raise ArgumentError(
                f"the labels of {split.source} are {names}: at least two are needed"
            )
        kind = "tags of entities" if self.has_entities else "labels of words"
        return f"{len(names)} {kind}, {shortened(names)}"

    def encode(self, split: Split) -> datasets.Dataset:
        """One feature a row; ``labels`` of each piece, and ``words``, how many have a label."""
        columns, limit = split.columns, self.options.max_length
        names = known_names(split.rows.features[columns["tags"]]) if split.labelled else None

        def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            features: dict[str, list[Any]] = {
                name: [] for name in ("input_ids", "token_type_ids", "labels", "words", "cut")
            }
            for k, index in enumerate(indices):
                where = split.row_name(index)
                words = _words(batch[columns["tokens"]][k], where)
                ids = [0] * len(words)
                if split.labelled:
                    tags = [name_of(tag, names) for tag in _listed(batch[columns["tags"]][k])]
                    if len(tags) != len(words):
                        raise ArgumentError(
                            f"{where} has {len(words)} tokens and {len(tags)} tags, expected as "
                            "many of both"
                        )
                    ids = [label_id(tag, self.labels, where) for tag in tags]
                coded = coded_words(self.tokenizer, words)
                if len(coded["input_ids"]) > limit and not self.options.truncate:
                    raise ArgumentError(
                        f"{where} is {len(coded['input_ids'])} pieces long, more than max_length "
                        f"{limit}: raise --max-length, split the sentence, or cut it by --truncate"
                    )
                for name, value in self._feature(coded, ids, limit).items():
                    features[name].append(value)
            return features

        return self.map_rows(split, encode)

    @staticmethod
    def _feature(coded: Any, ids: list[int], limit: int) -> dict[str, Any]:
        """Cut to ``limit`` before the final <sep> <cls>; a word's label goes to its first piece."""
        word_ids = coded.word_ids()
        keep = [*range(min(len(word_ids), limit) - 2), len(word_ids) - 2, len(word_ids) - 1]
        labels, previous = [], None
        for i in keep:
            word = word_ids[i]
            labels.append(IGNORED if word is None or word == previous else ids[word])
            previous = word
        return {
            "input_ids": [coded["input_ids"][i] for i in keep],
            "token_type_ids": [coded["token_type_ids"][i] for i in keep],
            "labels": labels,
            "words": sum(label != IGNORED for label in labels),
            "cut": len(keep) < len(word_ids),
        }

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """``labels``: [B, L], padded on the left as the rest."""
        batch = self.pad(features)
        length = batch["input_ids"].shape[1]
        batch["labels"] = torch.tensor(
            [[IGNORED] * (length - len(f["labels"])) + list(f["labels"]) for f in features]
        )
        return batch

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """Cross entropy over the words."""
        return class_loss(outputs.logits, batch["labels"], number_of_labels)

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The labels of the pieces, [B, L], and each sentence's sum of losses, [B]."""
        logits = outputs.logits.float()
        losses = F.cross_entropy(
            logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none"
        )
        return logits.argmax(-1), losses.sum(-1)

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Loss, the metrics of words and, where labels are chunk tags, of entities."""
        predicted, losses = predictions
        counted = labels != IGNORED
        metrics = {
            "loss": float(losses.sum() / counted.sum()),
            **measures.classification_metrics(labels[counted], predicted[counted]),
        }
        if self.has_entities:
            scores = measures.entity_scores(*self._tags(predicted, labels))[""]
            metrics |= {f"entity_{key}": scores[key] for key in ("precision", "recall", "f1")}
        return metrics

    def _tags(
        self, predicted: np.ndarray, labels: np.ndarray
    ) -> tuple[list[list[str]], list[list[str]]]:
        """True and predicted tags of each sentence, word by word."""
        gold, guess = [], []
        for row, gold_row in zip(predicted, labels, strict=True):
            counted = gold_row != IGNORED
            gold.append([self.labels[i] for i in gold_row[counted]])
            guess.append([self.labels[i] for i in row[counted]])
        return gold, guess

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each sentence's tags, and the tags that it has in the data."""
        assert labels is not None, "the first pieces of words are marked in the labels"
        gold, guess = self._tags(predictions[0], labels)
        rows: list[dict[str, Any]] = [{"prediction": tags} for tags in guess]
        if not split.labelled:
            return Report(rows)
        for row, tags in zip(rows, gold, strict=True):
            row["tags"] = tags
        counted = labels != IGNORED
        true, predicted = labels[counted], predictions[0][counted]
        details: dict[str, Any] = {"per_label": measures.per_label(true, predicted, self.labels)}
        if self.has_entities:
            scores = measures.entity_scores(gold, guess)
            details["per_entity"] = {kind: scores[kind] for kind in scores if kind}
        return Report(rows, details, measures.confusion(true, predicted, self.labels))


def _listed(value: Any) -> list[Any]:
    """A list column's value; words between blanks where the file has no lists (CSV)."""
    return value.split() if isinstance(value, str) else list(value or [])


def _words(value: Any, where: str) -> list[str]:
    words = [str(word) for word in _listed(value)]
    if not words:
        raise ArgumentError(f"{where} has no tokens")
    return words
