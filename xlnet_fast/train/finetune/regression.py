"""A number for a text, or for a pair of texts, such as how alike two sentences are (STS-B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.labels import finite_number
from xlnet_fast.train.finetune.options import REGRESSION, SINGLE
from xlnet_fast.train.finetune.scatter import plot_scatter
from xlnet_fast.train.finetune.task import IGNORED, Batch, Report, Split, known_names, name_of
from xlnet_fast.train.finetune.texts import TargetTask

_LARGE = 100.0  # labels; at the usual learning rates the head's bias moves by tenths


class TextRegression(TargetTask):
    """One output, trained on the squared error, as ``problem_type`` in HF's config."""

    problem_type = REGRESSION
    number_of_outputs = 1
    metric_names = ("mse", "mae", "pearson", "spearman")
    lower_is_better = ("mse", "mae")

    def fit_labels(self, split: Split) -> str:
        """The range of the numbers."""
        column = split.columns["label"]
        names = known_names(split.rows.features[column])
        values = enumerate(split.rows[column])
        numbers = [self.encoded_label(value, names, split.row_name(i)) for i, value in values]
        least, most = min(numbers), max(numbers)
        if least == most:
            raise ArgumentError(
                f"the labels of {split.source} are all {least:g}: a regression needs numbers that "
                "differ"
            )
        other = f"; they are classes with --problem-type {SINGLE}"
        if max(abs(least), abs(most)) >= _LARGE:
            other += ". The head begins near 0 and learns so large numbers slowly: divide them"
        return f"numbers from {least:g} to {most:g}, regression{other}"

    def encoded_label(self, value: Any, names: Sequence[str] | None, where: str) -> float:
        """The number; of a class id, that which is the class's name."""
        return finite_number(value if names is None else name_of(value, names), where)

    def targets(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """[B], fp32."""
        return torch.tensor([feature["label"] for feature in features], dtype=torch.float32)

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """The squared error, in fp32."""
        squares = (outputs.logits.float().squeeze(-1) - batch["targets"]).square()
        return squares.masked_fill(batch["labels"] == IGNORED, 0.0).sum() / number_of_labels

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The numbers, [B]."""
        return (outputs.logits.float().squeeze(-1),)

    def _gold(self, split: Split) -> np.ndarray:
        assert split.features is not None, "rows are encoded before they are evaluated"
        return np.asarray(split.features["label"][:], dtype=np.float64)

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Mean squared and absolute error, Pearson's and Spearman's correlation."""
        found = measures.regression_metrics(self._gold(split), predictions)
        return {"loss": found["mse"], **found}

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each row's number, and that which is predicted."""
        rows: list[dict[str, Any]] = [{"prediction": round(float(x), 6)} for x in predictions]
        if labels is None:
            return Report(rows)
        gold = self._gold(split)
        for row, number in zip(rows, gold, strict=True):
            row["label"] = float(number)
        return Report(rows, plots={"predicted.png": partial(plot_scatter, gold, predictions)})
