"""From the spans of tokens in the windows of a context to one answer for each question."""

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
        starts, ends: characters of the context at which each of its pieces starts and ends.
    """

    row: int
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Span:
    """A candidate: characters of the context, and its score; begin = end = 0 for no answer."""

    score: float
    begin: int
    end: int


def windows_of(features: Any) -> list[Window]:
    """The windows of encoded rows.

    The context comes first in a sequence, so its piece i is the sequence's position i.
    """
    columns = ("row", "starts", "ends")
    return [
        Window(row, np.asarray(starts), np.asarray(ends))
        for row, starts, ends in zip(*(features[name] for name in columns), strict=True)
    ]


def spans_of(
    window: Window, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray
) -> Iterator[Span]:
    """The candidates of a window, by their first and last pieces; negative ones are none.

    starts, ends, scores: [candidates].
    """
    for i, j, score in zip(starts, ends, scores, strict=True):
        if i >= 0:
            yield Span(float(score), int(window.starts[i]), int(window.ends[j]))


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
