"""Extractive question answering: the span of a context that answers a question, or none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.answers import answer_spans
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import metrics as measures
from xlnet_fast.train.finetune.sequences import WINDOWS, beam_inputs, context_spans, least_length
from xlnet_fast.train.finetune.spans import Span, best_answers, spans_of, windows_of
from xlnet_fast.train.finetune.task import Batch, Report, Split, Task, text_of

_NEVER = -1e30


@dataclass(frozen=True)
class _Answers:
    texts: list[str]
    starts: list[int]


class QuestionAnswering(Task):
    """Sequences are context <sep> question <sep> <cls>; a long context gives several windows.

    <cls> is the answer of a question that has none, and of a window that does not hold the answer.
    Of several answers the first is learnt, and all count in the evaluation.
    """

    architecture = "XLNetForQuestionAnsweringSimple"
    required = ("question", "context", "answers")
    optional = ("answer_start", "id")
    label_role = "answers"
    answer_roles = ("answers", "answer_start")
    metric_names = ("f1", "exact_match")
    some_have_none = False  # whether a question may have no answer

    def encode(self, split: Split) -> datasets.Dataset:
        """One feature a window.

        ``label``: first and last piece of the answer in it, or its <cls> twice; ``row``; ``size``:
        number of pieces; ``starts`` and ``ends``: characters of the context's pieces.
        """

        def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            keys = ("input_ids", "token_type_ids", "row", "size", "starts", "ends", "cut")
            features: dict[str, list[Any]] = {key: [] for key in keys}
            if split.labelled:
                features |= {"label": [], "none": []}
            for k, index in enumerate(indices):
                row = {name: values[k] for name, values in batch.items()}
                for feature in self._windows(row, index, split):
                    for key, value in feature.items():
                        features[key].append(value)
            return features

        return self.map_rows(split, encode)

    def _windows(self, row: Mapping[str, Any], index: int, split: Split) -> list[dict[str, Any]]:
        where = split.row_name(index)
        context = text_of(row[split.columns["context"]], "context", where)
        question = text_of(row[split.columns["question"]], "question", where).strip()
        answers = answers_of(row, split.columns, context, where) if split.labelled else None
        self._check_room(question, where)
        limits = {"max_length": self.options.max_length, "stride": self.options.stride}
        coded = self.tokenizer(context, question, **limits, **WINDOWS)
        features = []
        for window in coded.encodings:
            size = len(window.ids)
            spans = context_spans(window)
            feature = {
                "input_ids": window.ids,
                "token_type_ids": window.type_ids,
                "row": index,
                "size": size,
                "starts": [start for start, _ in spans],
                "ends": [end for _, end in spans],
                "cut": False,
            }
            if answers is not None:
                found = _positions(spans, answers)
                feature["label"] = list(found or (size - 1, size - 1))
                feature["none"] = found is None
            features.append(feature)
        return features

    def _check_room(self, question: str, where: str) -> None:
        pieces = len(self.tokenizer(question, add_special_tokens=False)["input_ids"])
        needed = least_length(pieces, self.options.stride)
        if needed > self.options.max_length:
            raise ArgumentError(
                f"the question of {where} is {pieces} pieces long: with windows that share "
                f"{self.options.stride} (--stride), --max-length must be at least {needed}, got "
                f"{self.options.max_length}"
            )

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """``labels``: [B, 2], positions in the padded batch; ``context``: [B, L], 1 where it is."""
        batch = self.pad(features)
        length = batch["input_ids"].shape[1]
        context = torch.zeros(len(features), length)
        for row, feature in zip(context, features, strict=True):
            first = length - feature["size"]
            row[first : first + len(feature["starts"])] = 1.0
        batch["context"] = context
        if "label" in features[0]:
            sizes = torch.tensor([[feature["size"]] for feature in features])
            batch["labels"] = torch.tensor([f["label"] for f in features]) + length - sizes
            batch["none"] = torch.tensor([float(feature["none"]) for feature in features])
        return batch

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """Mean of the cross entropies of start and end."""
        return _span_losses(outputs, batch).sum() / number_of_labels

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The best spans: first and last positions in the unpadded rows, and scores, [B, spans].

        Positions are negative where there are fewer. And [B]: the score of no answer and, where
        there are labels, the losses.
        """
        limits = {"count": self.options.n_best, "longest": self.options.max_answer_length}
        spans = answer_spans(outputs, batch["context"], **limits)
        padding = (batch["attention_mask"] == 0).sum(1, keepdim=True)
        starts, ends = ((x - padding).clamp(min=-1) for x in (spans.starts, spans.ends))
        return (starts, ends, spans.scores, *self._scores(outputs, batch))

    def _scores(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The score of no answer: that of <cls>, the last position; and the losses."""
        none = _span_logits(outputs, batch)[:, :, -1].sum(1)
        if "labels" not in batch:
            return (none,)
        return none, _span_losses(outputs, batch).view(-1, 2).mean(-1)

    def metrics(self, split: Split, predictions: Any, labels: np.ndarray) -> dict[str, float]:
        """Exact match and F1 in percent divided by 100, and the loss of the windows."""
        answers, _ = self._answers(split, predictions)
        metrics = measures.answer_metrics(answers, self._gold(split))
        losses = predictions[4:]  # none of the beam
        return {"loss": float(losses[0].mean()), **metrics} if losses else metrics

    def report(self, split: Split, predictions: Any, labels: np.ndarray | None) -> Report:
        """Each question's answer and score, and its answers in the data."""
        answers, spans = self._answers(split, predictions)
        rows: list[dict[str, Any]] = [
            {"prediction": answer, "score": round(span.score, 6)}
            for answer, span in zip(answers, spans, strict=True)
        ]
        if "id" in split.columns:
            for row, name in zip(rows, split.rows[split.columns["id"]], strict=True):
                row["id"] = name
        if split.labelled:
            for row, texts in zip(rows, self._gold(split), strict=True):
                row["answers"] = texts
        return Report(rows)

    def _gold(self, split: Split) -> list[list[str]]:
        return [_texts(row, split.columns) for row in split.rows]

    def _answers(self, split: Split, predictions: Any) -> tuple[list[str], list[Span]]:
        """An answer for each row; none is given only where the training data have such rows."""
        assert split.features is not None
        candidates: list[list[Span]] = [[] for _ in range(len(split.rows))]
        null = np.full(len(split.rows), np.inf)
        windows = windows_of(split.features)
        for window, *found, none in zip(windows, *predictions[:4], strict=True):
            candidates[window.row] += spans_of(window, *found)
            null[window.row] = min(null[window.row], none)
        excess = self._null_excess(candidates, null) if self.some_have_none else None
        best = best_answers(candidates, excess, self.options.null_threshold)
        contexts = split.rows[split.columns["context"]]
        return [
            text[span.begin : span.end] for text, span in zip(contexts, best, strict=True)
        ], best

    def fit_labels(self, split: Split) -> str:
        """Whether there are questions without an answer."""
        without = sum(not _texts(row, split.columns) for row in split.rows)
        self.some_have_none = without > 0
        return f"answers to {len(split.rows) - without} questions, none to {without}"

    def _without_labels(self, values: Sequence[Any]) -> bool:
        """As the base class; empty answers, too, where every question of the training has one."""
        if super()._without_labels(values):
            return True
        return not self.some_have_none and not any(_parsed(value)[0] for value in values)

    def _null_excess(self, candidates: Sequence[list[Span]], null: np.ndarray) -> np.ndarray:
        """The null score, the lowest over a question's windows, minus the best answer's."""
        best = [max((span.score for span in spans), default=-np.inf) for spans in candidates]
        return null - np.asarray(best)


class BeamQuestionAnswering(QuestionAnswering):
    """The head of the paper: the end given the start, and a classifier of unanswerable questions.

    For checkpoints of ``XLNetForQuestionAnswering``. Its forward gives either a loss or answers, so
    an evaluation has no loss.
    """

    architecture = "XLNetForQuestionAnswering"

    def model_inputs(self, batch: Batch, training: bool) -> Batch:
        """Also which positions cannot be answers: all but the context's and <cls>."""
        inputs = super().model_inputs(batch, training)
        inputs |= beam_inputs(batch["input_ids"], batch["context"])
        if not training:
            return inputs
        inputs["start_positions"], inputs["end_positions"] = batch["labels"].clamp(min=0).unbind(-1)
        inputs["is_impossible"] = batch["none"]
        # Its loss is a mean over the rows, so rows that only fill up a batch are left out.
        real = batch["labels"][:, 0] >= 0
        keep = real if bool(real.any()) else torch.arange(len(real), device=real.device) == 0
        return {name: value[keep] for name, value in inputs.items()}

    def loss(self, outputs: Any, batch: Batch, number_of_labels: Tensor | int) -> Tensor:
        """That of the model, as a share of the global batch; a row has two labels."""
        return outputs.loss * (batch["labels"] >= 0).sum() / number_of_labels

    def _scores(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The classifier's logit of no answer."""
        return (outputs.cls_logits.float(),)

    def _null_excess(self, candidates: Sequence[list[Span]], null: np.ndarray) -> np.ndarray:
        """The classifier's logit alone: above 0, no answer is the more likely."""
        return null


def _span_losses(outputs: Any, batch: Batch) -> Tensor:
    """Losses of start and end in turn, [2 B]; 0 for rows that only fill up a batch.

    Unlike HF's, without the padding: a sequence's loss is the same whatever it is batched with.
    """
    logits = _span_logits(outputs, batch).flatten(0, 1)
    return F.cross_entropy(logits, batch["labels"].reshape(-1), reduction="none")


def _span_logits(outputs: Any, batch: Batch) -> Tensor:
    """Logits of start and end, [B, 2, L], in fp32; the padding can be neither."""
    logits = torch.stack((outputs.start_logits, outputs.end_logits), 1).float()
    return logits.masked_fill(batch["attention_mask"][:, None] == 0, _NEVER)


def _positions(spans: Sequence[tuple[int, int]], answers: _Answers) -> tuple[int, int] | None:
    """First and last piece of the first answer in a window, None if it is not wholly inside."""
    if not answers.texts:
        return None
    begin, end = answers.starts[0], answers.starts[0] + len(answers.texts[0])
    if not spans or begin < spans[0][0] or end > spans[-1][1]:
        return None
    first = max(i for i, (start, _) in enumerate(spans) if start <= begin)
    last = min(i for i, (_, stop) in enumerate(spans) if stop >= end)
    return first, max(first, last)


def _texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return _parsed(row[columns["answers"]])[0]


def answers_of(
    row: Mapping[str, Any], columns: Mapping[str, str], context: str, where: str
) -> _Answers:
    """The answers of a row and where they are in the context.

    SQuAD's mapping of lists, a text or a list of texts; the first occurrence counts where no start
    is given. Raises ``ArgumentError`` for an answer that is not there.
    """
    texts, starts = _parsed(row[columns["answers"]])
    if (
        starts is None
        and "answer_start" in columns
        and row[columns["answer_start"]] not in ("", None)
    ):
        value = row[columns["answer_start"]]
        starts = [int(start) for start in (value if isinstance(value, list) else [value])]
    if starts is None:
        starts = [context.find(text) for text in texts]
    if len(starts) != len(texts):
        raise ArgumentError(f"{where} has {len(texts)} answers and {len(starts)} answer_start")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            place = "in" if start < 0 else f"at character {start} of"
            found = "" if start < 0 else f", but {context[start : start + len(text)]!r}"
            raise ArgumentError(f"{where}: the answer {text!r} is not {place} its context{found}")
    return _Answers(texts, starts)


def _parsed(value: Any) -> tuple[list[str], list[int] | None]:
    """Texts, and starts where the value has them."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value], None  # an answer that begins with a bracket
    if isinstance(value, Mapping):
        texts, starts = _list(value.get("text")), value.get("answer_start")
        return [str(text) for text in texts], None if starts is None else _list(starts)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        texts = [str(answer["text"]) for answer in value]
        return texts, [int(answer["answer_start"]) for answer in value]
    return [str(text) for text in _list(value)], None


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
