"""Labels with their probabilities, or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Parameter
from xlnet_fast.predict.tasks.texts import TextTask

MULTI, REGRESSION = "multi_label_classification", "regression"
"""What transformers calls them in a config; all else is one label a text."""


class TextClassification(TextTask):
    """By ``problem_type`` of the config: a label, the labels that apply, or a number.

    The logits of a long text are the means of its windows', weighted by their tokens.
    """

    name = "text-classification"
    architectures = ("XLNetForSequenceClassification",)
    parameters: ClassVar = {
        "top_k": Parameter(None, int, "labels to list, all unless given", least=1),
        "threshold": Parameter(
            0.5, float, "from which probability one of several labels applies", 0, 1
        ),
    }

    @property
    def problem(self) -> str:
        """One of transformers' problem types; one output without a type is a regression."""
        config = self.model.config
        default = REGRESSION if config.num_labels == 1 else "single_label_classification"
        return config.problem_type or default

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Logits (labels,) in fp32."""
        length = max(len(piece) for piece in pieces)
        if self.reading.long == "memory":
            length = min(length, self.reading.max_length)
        ((output, _),) = self.outputs(pieces, length, last=True)
        return list(output.logits.float().cpu())

    def decode(self, encoded: Encoded, results: Sequence[Tensor]) -> dict[str, Any]:
        """``label`` and ``score``, or ``labels``, and ``scores``; of a regression ``value``."""
        weights = torch.tensor([float(len(piece)) for piece in encoded.pieces])
        logits = (torch.stack(list(results)) * weights[:, None]).sum(0) / weights.sum()
        if self.problem == REGRESSION:
            return {"value": logits[0].item()}
        several = self.problem == MULTI
        likely = logits.sigmoid() if several else logits.softmax(0)
        names = self.model.config.id2label
        order = likely.argsort(descending=True, stable=True).tolist()
        scores = {names[i]: likely[i].item() for i in order[: encoded.parameters["top_k"]]}
        if several:
            least = encoded.parameters["threshold"]
            applying = [names[i] for i in order if likely[i].item() >= least]
            return {"labels": applying, "scores": scores}
        return {"label": names[order[0]], "score": likely[order[0]].item(), "scores": scores}
