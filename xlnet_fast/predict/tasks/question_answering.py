"""The part of a context that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xlnet_fast.answers import answer_spans
from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Parameter, Part, Reading, Task, text_field
from xlnet_fast.train.finetune.sequences import WINDOWS, beam_inputs, context_spans, least_length
from xlnet_fast.train.finetune.spans import Span, Window, best_answers, spans_of

BEAM_HEAD = "XLNetForQuestionAnswering"
_NEVER = -1e30


class QuestionAnswering(Task):
    """Sequences are context <sep> question <sep> <cls>, as in fine-tuning, in windows of a context.

    Scores compare the answers of one question: of the simple head the sum of both logits, of the
    beam head log p(start) + log p(end | start).
    """

    name = "question-answering"
    architectures = ("XLNetForQuestionAnsweringSimple", BEAM_HEAD)
    required: ClassVar = {"question": "text", "context": "text"}
    parameters: ClassVar = {
        "top_k": Parameter(1, int, "answers to list, at most n_best of a window", 1),
        "n_best": Parameter(20, int, "starts and ends an answer is made of", 1, 1000),
        "max_answer_length": Parameter(30, int, "tokens of the longest answer", 1, 1 << 20),
        "no_answer": Parameter(False, bool, "whether there may be no answer"),
        "null_threshold": Parameter(0.0, float, "no answer if better by more than this"),
    }

    def __init__(self, model: Any, tokenizer: Any, reading: Reading) -> None:
        """As the base class.

        Raises:
            ArgumentError: long is "memory".
        """
        super().__init__(model, tokenizer, reading)
        if reading.long == "memory":
            raise ArgumentError(
                "question-answering reads the question behind its context, so that a memory of "
                "the context would be made without it: long must be 'window' or 'truncate'"
            )

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """The windows of a context; ``starts`` and ``ends`` of the notes: characters of its pieces.

        Answers of several settings are found by themselves, so they are the group.
        """
        context = text_field(record, "context")
        question = text_field(record, "question").strip()
        if parameters["top_k"] > parameters["n_best"]:
            raise ArgumentError(
                f"top_k is {parameters['top_k']}, expected at most n_best {parameters['n_best']}"
            )
        cutting = self.reading.long == "truncate"
        limits = {
            "max_length": self.reading.max_length,
            "stride": 0 if cutting else self.reading.stride,
        }
        needed = least_length(len(self.question_ids(question)), limits["stride"])
        if needed > self.reading.max_length:
            raise ArgumentError(
                f"question is {len(self.question_ids(question))} pieces long and is read with "
                f"every window of the context: max_length must be at least {needed}, got "
                f"{self.reading.max_length}"
            )
        windows = self.coded(context, question, **limits, **WINDOWS).encodings
        read = windows[:1] if cutting else windows
        found = {"count": parameters["n_best"], "longest": parameters["max_answer_length"]}
        pieces = []
        for window in read:
            spans = np.array(context_spans(window)).reshape(-1, 2)
            if not len(spans):
                raise ArgumentError("context comes to no token, expected some words")
            notes = {"starts": spans[:, 0], "ends": spans[:, 1], "limits": found}
            pieces.append(Piece(window.ids, window.type_ids, notes, tuple(found.values())))
        return pieces, len(windows) > len(read)

    def question_ids(self, question: str) -> list[int]:
        """Of a question, without <sep> and <cls>."""
        return list(self.coded(question, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def run(self, pieces: Sequence[Piece]) -> list[dict[str, Tensor]]:
        """``starts``, ``ends`` and ``scores`` of a window's answers, best first; ``none``.

        The positions are the pieces'; ``none``: the score of no answer, as a window's.
        """
        batch = self.side_by_side(pieces)
        length = batch["input_ids"].shape[1]
        context = torch.zeros(len(pieces), length, device=self.model.device)
        for row, piece in zip(context, pieces, strict=True):
            first = length - len(piece)
            row[first : first + len(piece.notes["starts"])] = 1.0
        outputs = self.model(**batch, **self._beside(batch["input_ids"], context), use_mems=False)
        spans = answer_spans(outputs, context, **pieces[0].notes["limits"])
        none = self._none(outputs, batch["attention_mask"]).cpu()
        columns = [x.cpu() for x in (spans.starts, spans.ends, spans.scores)]
        results = []
        for row, piece in enumerate(pieces):
            there = columns[0][row] >= 0
            starts, ends, scores = (column[row][there] for column in columns)
            shift = length - len(piece)
            results.append(
                {"starts": starts - shift, "ends": ends - shift, "scores": scores,
                 "none": none[row]}
            )  # fmt: skip
        return results

    @property
    def beam(self) -> bool:
        """Whether the head is that of the paper."""
        return hasattr(self.model, "answer_class")

    def _beside(self, ids: Tensor, context: Tensor) -> dict[str, Tensor]:
        """What the beam head is given beside, in the model's dtype."""
        if not self.beam:
            return {}
        inputs = beam_inputs(ids, context)
        return {**inputs, "p_mask": inputs["p_mask"].to(self.model.dtype)}

    def _none(self, outputs: Any, mask: Tensor) -> Tensor:
        """(B,): the classifier's logit, or the sum of both logits of <cls>, the last position."""
        if self.beam:
            logit: Tensor = outputs.cls_logits
            return logit.float()
        both = torch.stack((outputs.start_logits, outputs.end_logits), 1).float()
        return both.masked_fill(mask[:, None] == 0, _NEVER)[:, :, -1].sum(1)

    def decode(self, encoded: Encoded, results: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """``answer``, ``score``, ``begin`` and ``end`` (characters), and ``answers``, best first.

        Where no answer is allowed also ``no_answer``: by how much it outscores the best answer, or
        of the beam head the classifier's logit of it. Above the threshold, ``answer`` is empty.
        """
        context, parameters = encoded.record["context"], encoded.parameters
        spans = [span for span, _ in self._candidates(encoded, results)]
        excess = None
        if parameters["no_answer"]:
            excess = min(result["none"].item() for result in results)
            if not self.beam:
                excess -= max((span.score for span in spans), default=-np.inf)
        null = None if excess is None else np.array([excess])
        (best,) = best_answers([spans], null, parameters["null_threshold"])
        unequal: dict[tuple[int, int], Span] = {}
        for span in sorted(spans, key=lambda span: -span.score):
            unequal.setdefault((span.begin, span.end), span)
        listed = [_answer(span, context) for span in unequal.values()]
        answer = {**_answer(best, context), "answers": listed[: parameters["top_k"]]}
        return answer if excess is None else {**answer, "no_answer": excess}

    @staticmethod
    def _candidates(
        encoded: Encoded, results: Sequence[dict[str, Tensor]]
    ) -> list[tuple[Span, tuple[Piece, int, int]]]:
        """The answers of all windows, each with its piece, first and last position in it."""
        found: list[tuple[Span, tuple[Piece, int, int]]] = []
        for piece, result in zip(encoded.pieces, results, strict=True):
            window = Window(0, piece.notes["starts"], piece.notes["ends"])
            starts, ends, scores = (result[name].numpy() for name in ("starts", "ends", "scores"))
            places = ((piece, int(i), int(j)) for i, j in zip(starts, ends, strict=True))
            found += zip(spans_of(window, starts, ends, scores), places, strict=True)
        return found

    def explained(
        self, encoded: Encoded, results: Sequence[Any], target: str | int | None
    ) -> tuple[dict[str, Any], list[Part]]:
        """The logits of the best answer's start and of its end (given the start), together."""
        if target is not None:
            raise ArgumentError("question-answering explains its best answer, expected no target")
        candidates = self._candidates(encoded, results)
        if not candidates:
            raise ArgumentError("the context has no answer that could be explained")
        span, (piece, i, j) = max(candidates, key=lambda pair: pair[0].score)

        def value(embeddings: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            if not self.beam:
                output = self.model(inputs_embeds=embeddings, **inputs, use_mems=False)
                simple: Tensor = output.start_logits[:, i] + output.end_logits[:, j]
                return simple
            hidden = self.transformer(inputs_embeds=embeddings, **inputs, use_mems=False)[0]
            starts = torch.full_like(inputs["token_type_ids"][:, 0], i)
            ends = self.model.end_logits(hidden, start_positions=starts)
            both: Tensor = self.model.start_logits(hidden)[:, i] + ends[:, j]
            return both

        answer = _answer(span, encoded.record["context"])
        what = {name: answer[name] for name in ("answer", "begin", "end")}
        return what, [Part(piece, 1.0, value)]

    def tokens(self, encoded: Encoded, piece: Piece) -> list[tuple[str, int, int]]:
        """See the base class."""
        question = encoded.record["question"]
        blank = len(question) - len(question.lstrip())
        coded = self.coded(question.strip(), add_special_tokens=False, return_offsets_mapping=True)
        asked = [(begin + blank, end + blank) for begin, end in coded["offset_mapping"]]
        rows = (piece.notes["starts"].tolist(), piece.notes["ends"].tolist())
        found: list[tuple[str, int, int]] = []
        for name, spans in (("context", list(zip(*rows, strict=True))), ("question", asked)):
            found += [(name, begin, end) for begin, end in spans]
            stop = spans[-1][1] if spans else 0
            found.append((name, stop, stop))
        return [*found, found[-1]]


def _answer(span: Span, context: str) -> dict[str, Any]:
    text = context[span.begin : span.end]
    return {"answer": text, "score": span.score, "begin": span.begin, "end": span.end}
