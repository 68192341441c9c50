"""Which of several choices fits a passage, and a question about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Part, shown, text_field, texts_field
from xlnet_fast.predict.tasks.text_classification import weighted_mean, weights
from xlnet_fast.predict.tasks.texts import TextTask
from xlnet_fast.train.finetune.sequences import ending


class MultipleChoice(TextTask):
    """Each choice is a sequence: passage <sep> question and choice <sep> <cls>.

    As in fine-tuning, a choice takes the place of "_" in the question, or follows it. The windows
    of a long passage are the same for all choices; a choice's logit is their mean, weighted by
    their tokens.
    """

    name = "multiple-choice"
    architectures = ("XLNetForMultipleChoice",)
    required: ClassVar = {"passage": "text", "choices": "list of texts"}
    optional: ClassVar = {"question": "text"}

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """All windows of the first choice, then those of the second, and so on."""
        passage = self.token_ids(text_field(record, "passage"))
        endings = [self.token_ids(text) for text in _endings(record)]
        found, cut = self.sequences(passage, endings, "the longest choice with its question")
        pieces = [
            replace(piece, notes={**piece.notes, "choice": choice})
            for choice, windows in enumerate(found)
            for piece in windows
        ]
        return pieces, cut

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The logit of a choice, (1,), in fp32."""
        ((output, _),) = self.outputs(pieces, last=True)
        return list(output.logits.float().cpu())

    def forward(self, **inputs: Any) -> Any:
        """As of records with one choice each: the head looks at each choice by itself."""
        rows = ("input_ids", "inputs_embeds", "token_type_ids", "attention_mask")
        output = self.model(
            **{name: x.unsqueeze(1) if name in rows else x for name, x in inputs.items()}
        )
        return SimpleNamespace(logits=output.logits, mems=output.mems)

    def decode(self, encoded: Encoded, results: Sequence[Tensor]) -> dict[str, Any]:
        """``choice``, counted from 0, its ``text`` and ``score``, and all ``scores`` in order."""
        likely = self._logits(encoded, results).softmax(0)
        best = int(likely.argmax())
        text = encoded.record["choices"][best]
        return {
            "choice": best, "text": text, "score": likely[best].item(), "scores": likely.tolist()
        }  # fmt: skip

    @staticmethod
    def _logits(encoded: Encoded, results: Sequence[Tensor]) -> Tensor:
        """(choices,)"""
        each = len(results) // len(encoded.record["choices"])
        firsts = range(0, len(results), each)
        return torch.cat([
            weighted_mean(encoded.pieces[i : i + each], results[i : i + each]) for i in firsts
        ])  # fmt: skip

    def explained(
        self, encoded: Encoded, results: Sequence[Any], target: str | int | None
    ) -> tuple[dict[str, Any], list[Part]]:
        """A choice's logit: of number ``target``, by default the best one.

        The question with the choice is the text ``ending`` of the tokens.
        """
        choice = int(self._logits(encoded, results).argmax()) if target is None else target
        count = len(encoded.record["choices"])
        if isinstance(choice, bool) or choice not in range(count):
            raise ArgumentError(f"target is {shown(target)}, expected 0 to {count - 1}, a choice")

        def value(embeddings: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            logits: Tensor = self.forward(inputs_embeds=embeddings, **inputs).logits
            return logits[:, 0]

        pieces = [piece for piece in encoded.pieces if piece.notes["choice"] == choice]
        parts = [Part(piece, w, value) for piece, w in zip(pieces, weights(pieces), strict=True)]
        return {"choice": choice, "ending": _endings(encoded.record)[int(choice)]}, parts

    def texts(self, encoded: Encoded, piece: Piece) -> list[tuple[str, str]]:
        """See the base class."""
        second = _endings(encoded.record)[piece.notes["choice"]]
        return [("passage", encoded.record["passage"]), ("ending", second)]


def _endings(record: Mapping[str, Any]) -> list[str]:
    question = "" if record.get("question") in (None, "") else text_field(record, "question")
    return [ending(question, choice) for choice in texts_field(record, "choices", least=2)]
