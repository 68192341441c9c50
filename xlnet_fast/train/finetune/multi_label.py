"""Any number of labels for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.label_scores import plot_label_scores
from xlnet_fast.train.finetune.labels import names_of_lists, several_names, shortened
from xlnet_fast.train.finetune.options import MULTI
from xlnet_fast.train.finetune.task import IGNORED, Batch, Report, Split, label_id
from xlnet_fast.train.finetune.texts import TargetTask


class MultiLabelClassification(TargetTask):
    """Each label applies or does not: a sigmoid for each, as ``problem_type`` in HF's config."""

    problem_type = MULTI
    # The first needs no threshold: F1 is 0 for all of a run's first checkpoints alike.
    metric_names = (
        "average_precision_micro", "average_precision_macro", "f1_micro", "f1_macro",
        "precision_micro", "recall_micro", "subset_accuracy",
    )  # fmt: skip

    def fit_labels(self, split: Split) -> str:
        """The names of the column's features, else what the training rows have, in order."""
        self.labels = names_of_lists(split)
        if len(self.labels) < 2:
            raise ArgumentError(
                f"the labels of {split.source} are {self.labels}: at least two are needed, of "
                "which any number applies to a row; one label that applies or not is two classes"
            )
        return f"any number of {len(self.labels)} labels a row, {shortened(self.labels)}"

    def encoded_label(self, value: Any, names: Sequence[str] | None, where: str) -> list[int]:
        """The ids of the labels that apply, in order."""
        found = several_names(value, names, where)
        return sorted(label_id(name, self.labels, where) for name in found)

    def targets(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """1 where a label applies, [B, labels]."""
        return torch.from_numpy(self._marks([f["label"] for f in features])).float()

    def _marks(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """1 where a label applies, else 0, [rows, labels]."""
        marks = np.zeros((len(rows), len(self.labels)), dtype=np.int64)
        for row, ids in zip(marks, rows, strict=True):
            row[list(ids)] = 1
        return marks

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """Binary cross entropy, the mean over the labels of a row, as HF's; in fp32."""
        losses = F.binary_cross_entropy_with_logits(
            outputs.logits.float(), batch["targets"], reduction="none"
        ).mean(-1)
        return losses.masked_fill(batch["labels"] == IGNORED, 0.0).sum() / number_of_labels

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits, [B, labels]."""
        return (outputs.logits.float(),)

    def _gold(self, split: Split) -> np.ndarray:
        assert split.features is not None, "rows are encoded before they are evaluated"
        return self._marks(split.features["label"][:])

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Loss, average precision, and what the labels above the threshold come to."""
        gold, logits = self._gold(split), torch.from_numpy(predictions).float()
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(gold).float())
        likely = logits.sigmoid().numpy()
        chosen = likely >= self.options.threshold
        return {"loss": float(loss), **measures.multi_label_metrics(gold, likely, chosen)}

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each row's labels, predicted labels, and the probability of every label."""
        likely = torch.from_numpy(predictions).float().sigmoid().numpy()
        chosen = likely >= self.options.threshold
        rows: list[dict[str, Any]] = [
            {
                "prediction": self._named(marks),
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(self.labels, row, strict=True)
                },
            }
            for marks, row in zip(chosen, likely, strict=True)
        ]
        if labels is None:
            return Report(rows)
        gold = self._gold(split)
        for row, marks in zip(rows, gold, strict=True):
            row["label"] = self._named(marks)
        scores = measures.per_label(gold, chosen.astype(np.int64), self.labels)
        details = {"threshold": self.options.threshold, "per_label": scores}
        return Report(rows, details, plots={"labels.png": partial(plot_label_scores, scores)})

    def _named(self, marks: np.ndarray) -> list[str]:
        return [name for name, mark in zip(self.labels, marks, strict=True) if mark]
