"""How rows become the sequences that a model reads, in training as for an answer.

Only torch here: what answers needs neither `datasets` nor scikit-learn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOWS: dict[str, Any] = {"truncation": "only_first", "return_overflowing_tokens": True}
"""How a tokenizer is called for context <sep> question <sep> <cls>, in windows of the context."""

_SPECIAL_TOKENS = 3  # context <sep> question <sep> <cls>
_LEAST_CONTEXT = 8  # pieces beside the stride that a window must have, to move on


def coded_words(tokenizer: Any, words: list[str], **settings: Any) -> Any:
    """A sentence of which every word has a piece: <unk> where a word gives none."""
    coded = tokenizer(words, is_split_into_words=True, **settings)
    missing = set(range(len(words))) - {i for i in coded.word_ids() if i is not None}
    if missing:
        unknown = tokenizer.unk_token
        words = [unknown if i in missing else word for i, word in enumerate(words)]
        coded = tokenizer(words, is_split_into_words=True, **settings)
    return coded


def ending(stem: str, choice: str) -> str:
    """A choice in the place of "_" in its question, or behind it, as in run_race.py."""
    return stem.replace("_", choice) if "_" in stem else f"{stem} {choice}".strip()


def least_length(question: int, stride: int) -> int:
    """Tokens of a window that has a question of so many pieces and moves on in the context."""
    return question + _SPECIAL_TOKENS + stride + _LEAST_CONTEXT


def context_spans(window: Any) -> list[tuple[int, int]]:
    """The characters of each piece of the context in a window, which comes first in it.

    window: an ``Encoding`` of the tokenizers library.
    """
    return [window.offsets[i] for i, part in enumerate(window.sequence_ids) if part == 0]


def beam_inputs(input_ids: Tensor, context: Tensor) -> dict[str, Tensor]:
    """What the beam head is told beside: which positions are no answers, and where <cls> is.

    Answers are in the context, or <cls>, the last position.

    input_ids: (B, L) int64, padded on the left; context: (B, L) float, 1 where it is, else 0.
    """
    impossible = 1.0 - context
    impossible[:, -1] = 0.0
    last = torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1)
    return {"p_mask": impossible, "cls_index": last}
