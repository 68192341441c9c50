"""What the answers about a text, or a pair of texts, have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.segments import boundaries
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Task, text_field
from xlnet_fast.predict.windows import cut_lengths, window_bounds

LEAST_WINDOW = 8  # tokens beside the stride that a window must have, to move on
Bounds = tuple[int, int]


class TextTask(Task):
    """Sequences are text <sep> [text_pair <sep>] <cls>, as fine-tuning makes them.

    The notes of a piece have ``parts``: which of the tokens of the text, and of the pair, it has.
    """

    required: ClassVar = {"text": "text"}
    optional: ClassVar = {"text_pair": "text"}

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """One, or several windows of ``text`` that all have the whole ``text_pair``."""
        ids = self.token_ids(text_field(record, "text"))
        pair = None
        if record.get("text_pair") is not None:
            pair = self.token_ids(text_field(record, "text_pair"))
        (pieces,), cut = self.sequences(ids, [pair], "text_pair")
        return pieces, cut

    def sequences(
        self, ids: Sequence[int], pairs: Sequence[Sequence[int] | None], name: str
    ) -> tuple[list[list[Piece]], bool]:
        """The pieces of a text with each of several others, or with None alone.

        Too long a text has the same windows beside all others, so that they can be compared.

        Args:
            ids: of the text. pairs: of the others. name: of these, for messages.

        Raises:
            ArgumentError: there is no room for windows beside the longest other.
        """
        reading, longest = self.reading, max(len(pair or ()) for pair in pairs)
        room = reading.max_length - 2 - (pairs[0] is not None)
        if len(ids) + longest <= room or reading.long == "memory":
            return [[self.piece(ids, pair, (0, len(ids)))] for pair in pairs], False
        if reading.long == "truncate":
            return [[self._cut(ids, pair, room)] for pair in pairs], True
        room -= longest
        if room < reading.stride + LEAST_WINDOW:
            least = reading.max_length - room + reading.stride + LEAST_WINDOW
            raise ArgumentError(
                f"{name} is {longest} pieces long and is read with every window of the text: "
                f"max_length must be at least {least}, or long 'truncate'"
            )
        bounds = window_bounds(len(ids), room, reading.stride)
        return [[self.piece(ids, pair, window) for window in bounds] for pair in pairs], False

    def _cut(self, ids: Sequence[int], pair: Sequence[int] | None, room: int) -> Piece:
        """The longer one is cut first, on the tokenizer's side, as fine-tuning does."""
        lengths = cut_lengths(len(ids), len(pair or ()), room)
        left = self.tokenizer.truncation_side == "left"
        first, second = (
            (len(row) - kept, len(row)) if left else (0, kept)
            for row, kept in zip((ids, pair or ()), lengths, strict=True)
        )
        return self.piece(ids, pair, first, second)

    def token_ids(self, text: str) -> list[int]:
        """Of a text, without <sep> and <cls>."""
        return list(self.coded(text, add_special_tokens=False)["input_ids"])

    def piece(
        self,
        ids: Sequence[int],
        pair: Sequence[int] | None,
        part: Bounds,
        other: Bounds | None = None,
        **notes: Any,
    ) -> Piece:
        """The sequence of a part of a text, and of a part, by default all, of its pair."""
        sep, cls = self.tokenizer.sep_token_id, self.tokenizer.cls_token_id
        row, segments, parts = [*ids[slice(*part)], sep], [0] * (part[1] - part[0] + 1), [part]
        if pair is not None:
            other = other or (0, len(pair))
            row += [*pair[slice(*other)], sep]
            segments += [1] * (other[1] - other[0] + 1)
            parts.append(other)
        return Piece([*row, cls], [*segments, 2], {"parts": parts, **notes})

    def texts(self, encoded: Encoded, piece: Piece) -> list[tuple[str, str]]:
        """The names and texts that a piece is of, in the order of its parts."""
        fields = [*self.required, *self.optional]
        return [
            (name, encoded.record[name]) for name in fields if encoded.record.get(name) is not None
        ]

    def tokens(self, encoded: Encoded, piece: Piece) -> list[tuple[str, int, int]]:
        """See the base class."""
        found: list[tuple[str, int, int]] = []
        name, stop = "", 0
        for (name, text), part in zip(
            self.texts(encoded, piece), piece.notes["parts"], strict=True
        ):
            coded = self.coded(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = coded["offset_mapping"][slice(*part)]
            found += [(name, begin, end) for begin, end in spans]
            stop = spans[-1][1] if spans else 0
            found.append((name, stop, stop))
        return [*found, (name, stop, stop)]

    def segment_length(self, pieces: Sequence[Piece]) -> int:
        """Tokens of a segment of a batch: all, unless long texts are read through memory."""
        longest = max(len(piece.input_ids) for piece in pieces)
        return min(longest, self.reading.max_length) if self.reading.long == "memory" else longest

    @torch.no_grad()
    def outputs(self, pieces: Sequence[Piece], *, last: bool) -> Iterator[tuple[Any, int]]:
        """The outputs of a batch's segments, each with the memory of those before.

        A batch that is no longer than a segment has no memory; the first may be the shorter one.

        Args:
            last: of the last segment alone.

        Yields:
            The model's output, of rows that are padded on the left, and where it begins in them.
        """
        batch, length = self.side_by_side(pieces), self.segment_length(pieces)
        longest = batch["input_ids"].shape[1]
        memory: tuple[Tensor, ...] | None = None
        for begin, end in boundaries(longest, length):
            kept = 0 if memory is None else memory[0].shape[0]
            asked = end == longest or not last
            # The others pass the head by: there, a short text may be nothing but padding.
            output = (self.forward if asked else self.transformer)(
                input_ids=batch["input_ids"][:, begin:end],
                token_type_ids=batch["token_type_ids"][:, begin:end],
                attention_mask=batch["attention_mask"][:, begin - kept : end],
                mems=memory,
                use_mems=longest > length,
            )
            memory = None if output.mems is None else tuple(output.mems)
            if asked:
                yield output, begin

    def forward(self, **inputs: Any) -> Any:
        """The model's output of rows, (B, L)."""
        return self.model(**inputs)
