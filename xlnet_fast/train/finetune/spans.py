"""From scores of starts and ends in the windows of a context to one answer for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Window:
    """The context's part in one sequence.

    Attributes:
        row: the question that it belongs to.
        shift: position in the padded predictions minus position in the sequence.
        starts, ends: characters of the context at which each of its pieces starts and ends.
    """

    row: int
    shift: int
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Span:
    """A candidate: characters of the context, and its score; begin = end = 0 for no answer."""

    score: float
    begin: int
    end: int


def windows_of(features: Any, length: int) -> list[Window]:
    """The windows of encoded rows whose predictions are right-aligned in ``length`` positions.

    The context comes first in a sequence, so its piece i is the sequence's position i.
    """
    columns = ("row", "size", "starts", "ends")
    return [
        Window(row, length - size, np.asarray(starts), np.asarray(ends))
        for row, size, starts, ends in zip(*(features[name] for name in columns), strict=True)
    ]


def spans_of_logits(
    window: Window, start: np.ndarray, end: np.ndarray, n_best: int, longest: int
) -> Iterator[Span]:
    """The candidates among a window's ``n_best`` starts and ends, at most ``longest`` pieces long.

    start, end: logits of all positions, [length].
    """
    first, last = window.shift, window.shift + len(window.starts)
    starts, ends = start[first:last], end[first:last]
    best_starts = np.argsort(-starts, kind="stable")[:n_best]
    best_ends = np.argsort(-ends, kind="stable")[:n_best]
    for i in best_starts:
        for j in best_ends[(best_ends >= i) & (best_ends < i + longest)]:
            score = float(starts[i] + ends[j])
            yield Span(score, int(window.starts[i]), int(window.ends[j]))


def spans_of_beam(
    window: Window,
    start_scores: np.ndarray,
    start_positions: np.ndarray,
    end_scores: np.ndarray,
    end_positions: np.ndarray,
    longest: int,
) -> Iterator[Span]:
    """The candidates of a beam: for each start, the best ends given that start.

    start_scores, start_positions: [starts]. end_scores, end_positions: [ends, starts]; HF returns
    them flattened in this order (its documentation names the other one). Scores are logarithms.
    """
    size = len(window.starts)
    for k, i in enumerate(start_positions - window.shift):
        for j, score in zip(end_positions[:, k] - window.shift, end_scores[:, k], strict=True):
            if 0 <= i <= j < min(size, i + longest):
                begin, end = int(window.starts[i]), int(window.ends[j])
                yield Span(float(start_scores[k] + score), begin, end)


def best_answers(
    candidates: Sequence[list[Span]], null_scores: np.ndarray | None, threshold: float
) -> list[Span]:
    """The best candidate of each question, or no answer.

    candidates: of all windows of a question.
    null_scores: for each question how much its having no answer outscores the best answer, or None
        where every question has one.
    """
    nothing = Span(float("-inf"), 0, 0)
    answers = []
    for k, spans in enumerate(candidates):
        best = max(spans, key=lambda span: span.score, default=nothing)
        none = null_scores is not None and null_scores[k] > threshold
        answers.append(Span(best.score, 0, 0) if none else best)
    return answers
