"""Labels with their probabilities, or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Parameter, Part, shown
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
        ((output, _),) = self.outputs(pieces, last=True)
        return list(output.logits.float().cpu())

    def decode(self, encoded: Encoded, results: Sequence[Tensor]) -> dict[str, Any]:
        """``label`` and ``score``, or ``labels``, and ``scores``; of a regression ``value``."""
        logits = weighted_mean(encoded.pieces, results)
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

    def explained(
        self, encoded: Encoded, results: Sequence[Any], target: str | int | None
    ) -> tuple[dict[str, Any], list[Part]]:
        """A label's logit: of ``target``, by default the likeliest; of a regression the number."""
        names = self.model.config.id2label
        label = int(weighted_mean(encoded.pieces, results).argmax())
        if target is not None:
            found = [i for i, name in names.items() if name == target]
            if not found:
                known = ", ".join(names.values())
                raise ArgumentError(f"target is {shown(target)}, expected one of: {known}")
            label = found[0]

        def value(embeddings: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            logits: Tensor = self.model(inputs_embeds=embeddings, **inputs).logits
            return logits[:, label]

        shares = zip(encoded.pieces, weights(encoded.pieces), strict=True)
        return {"label": names[label]}, [Part(piece, share, value) for piece, share in shares]


def weights(pieces: Sequence[Piece]) -> list[float]:
    """What the windows of a text count for: their shares of its tokens."""
    total = sum(len(piece) for piece in pieces)
    return [len(piece) / total for piece in pieces]


def weighted_mean(pieces: Sequence[Piece], results: Sequence[Tensor]) -> Tensor:
    """Of the windows' results, each (values,), by their tokens."""
    if len(results) == 1:
        return results[0]
    return torch.stack(list(results)).T @ torch.tensor(weights(pieces))
