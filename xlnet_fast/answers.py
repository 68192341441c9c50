"""From what a question-answering model of Hugging Face returns to the spans that may be answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError

_NEVER = float("-inf")
_Candidates = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AnswerSpans:
    """The best spans of each row, best first.

    Attributes:
        starts, ends: (B, K) int64, positions of the first and the last token in ``input_ids``; -1
            where a row has fewer than K spans.
        scores: (B, K) fp32, -inf where a row has fewer.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor

    def triples(self) -> list[list[tuple[int, int, float]]]:
        """(start, end, score) of each row's spans; the end is the last token of the answer."""
        rows = zip(self.starts.tolist(), self.ends.tolist(), self.scores.tolist(), strict=True)
        return [[(i, j, score) for i, j, score in zip(*row, strict=True) if i >= 0] for row in rows]


def answer_spans(
    outputs: Any, allowed: Tensor | None = None, *, count: int = 20, longest: int | None = None
) -> AnswerSpans:
    """The best answers that XLNet's question-answering models have found, of either head.

    Scores compare the spans of one row, and of several windows of one context. Those of
    ``XLNetForQuestionAnsweringSimple`` are the sum of both logits; those of the beam search of
    ``XLNetForQuestionAnswering`` log p(start) + log p(end | start), a probability of 0 counting as
    the least of fp32. What Hugging Face calls ``log_probs`` there are probabilities, and
    ``end_top_index`` is flattened from (B, ends, starts), whatever its documentation says.

    That there is no answer is not among them: see ``cls_logits`` of the beam head, and the sum of
    both logits of <cls> of the simple one.

    Args:
        outputs: of the model, called without labels or, the simple one, with them.
        allowed: (B, L), nonzero where an answer may be: the context's tokens, or ``attention_mask``
            at the least where a batch is padded. None: anywhere.
        count: spans of each row, at most; of the simple head also how many of the best starts and
            ends are combined.
        longest: tokens of an answer, at most. None: any number.

    Raises:
        ArgumentError: outputs of another kind, or sizes below 1.
        ShapeError: ``allowed`` is not (B, L).
    """
    if count < 1 or (longest is not None and longest < 1):
        raise ArgumentError(f"count is {count} and longest {longest}, expected at least 1")
    if getattr(outputs, "start_logits", None) is not None:
        batch, length = outputs.start_logits.shape
        flags = _flags(allowed, batch, length)
        candidates = _of_logits(outputs, flags, count)
    elif getattr(outputs, "start_top_index", None) is not None:
        flags = _flags(allowed, len(outputs.start_top_index))
        candidates = _of_beam(outputs)
    else:
        raise ArgumentError(
            f"{type(outputs).__name__} has no answers: expected the outputs of "
            "XLNetForQuestionAnsweringSimple, or of XLNetForQuestionAnswering without labels"
        )
    starts, ends, scores = (values.flatten(1) for values in candidates)
    possible = ends >= starts
    if longest is not None:
        possible &= ends - starts < longest
    if flags is not None:
        possible &= flags.gather(1, starts) & flags.gather(1, ends)
    return _best(starts, ends, scores.masked_fill(~possible, _NEVER), count)


def _flags(allowed: Tensor | None, batch: int, length: int | None = None) -> Tensor | None:
    """The argument as (B, L) bool; a beam does not tell L."""
    if allowed is None:
        return None
    if allowed.dim() != 2 or len(allowed) != batch or length not in (None, allowed.shape[1]):
        expected = f"({batch}, {'L' if length is None else length})"
        raise ShapeError(f"allowed is of shape {tuple(allowed.shape)}, expected {expected}")
    return allowed != 0


def _of_logits(outputs: Any, flags: Tensor | None, count: int) -> _Candidates:
    """Starts, ends and scores, each (B, k, k), of the best k allowed starts and ends."""
    best = []
    for logits in (outputs.start_logits.float(), outputs.end_logits.float()):
        if flags is not None:
            logits = logits.masked_fill(~flags, _NEVER)
        values, positions = logits.sort(descending=True, stable=True)
        best.append((values[:, :count], positions[:, :count]))
    (start, starts), (end, ends) = best
    starts, ends = torch.broadcast_tensors(starts[:, :, None], ends[:, None])
    return starts, ends, start[:, :, None] + end[:, None]


def _of_beam(outputs: Any) -> _Candidates:
    """Starts, ends and scores, each (B, ends, starts)."""
    starts = outputs.start_top_index[:, None]  # (B, 1, starts)
    shape = (len(starts), -1, starts.shape[2])
    ends = outputs.end_top_index.reshape(shape)
    start, end = outputs.start_top_log_probs[:, None], outputs.end_top_log_probs.reshape(shape)
    least = torch.finfo(torch.float32).tiny
    scores = start.float().clamp(min=least).log() + end.float().clamp(min=least).log()
    return starts.expand_as(ends), ends, scores


def _best(starts: Tensor, ends: Tensor, scores: Tensor, count: int) -> AnswerSpans:
    """The best ``count`` of (B, candidates)."""
    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[:, :count], order[:, :count]
    missing = scores == _NEVER
    starts, ends = (x.gather(1, order).masked_fill(missing, -1) for x in (starts, ends))
    return AnswerSpans(starts, ends, scores)
