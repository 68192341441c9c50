"""Pieces: the rows that batches are made of, and which of them go side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TOKEN_BUDGET = 1024
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Piece:
    """One sequence: a text, a window of a long one, a question with a part of its context.

    Attributes:
        input_ids, token_type_ids: of its tokens, <sep> and <cls> included; lists of equal length.
        notes: what the task needs to read the outputs, such as the characters of the tokens.
        group: pieces of different groups never share a batch, for they are computed differently.
        extra_tokens: those that are computed beside ``input_ids``, such as the ones to write.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    notes: Mapping[str, Any] = field(default_factory=dict)
    group: Hashable = None
    extra_tokens: int = 0

    def __len__(self) -> int:
        """The tokens that a batch takes for it."""
        return len(self.input_ids) + self.extra_tokens


@dataclass(frozen=True)
class Encoded:
    """A record as the model reads it.

    Attributes:
        record: as it was given, a mapping.
        pieces: one or more.
        parameters: of this record's answer, checked, each with a value.
        cut: whether a part of the record is not read.
    """

    record: Mapping[str, Any]
    pieces: Sequence[Piece]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False


def batches_by_length(
    pieces: Sequence[Piece], token_budget: int = TOKEN_BUDGET
) -> Iterator[list[int]]:
    """Places of pieces that make good batches, the longest first, so that memory's peak is first.

    A batch times its longest piece stays within the budget; a longer piece goes alone.
    """
    order = sorted(range(len(pieces)), key=lambda i: (repr(pieces[i].group), -len(pieces[i])))
    batch: list[int] = []
    for i in order:
        if batch:
            first = pieces[batch[0]]
            full = (len(batch) + 1) * len(first) > token_budget
            if full or pieces[i].group != first.group:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch
