"""What the answers about a text, or a pair of texts, have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.segments import boundaries
from xlnet_fast.predict.pieces import Piece
from xlnet_fast.predict.tasks.base import Task, text_field
from xlnet_fast.predict.windows import cut_lengths, window_bounds

LEAST_WINDOW = 8  # tokens beside the stride that a window must have, to move on


class TextTask(Task):
    """Sequences are text <sep> [text_pair <sep>] <cls>, as fine-tuning makes them."""

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
        reading = self.reading
        room = reading.max_length - 2 - (pair is not None)
        total = len(ids) + len(pair or ())
        if total <= room or reading.long == "memory":
            return [self.piece(ids, pair)], False
        if reading.long == "truncate":
            kept, kept_pair = cut_lengths(len(ids), len(pair or ()), room)
            return [self.piece(ids[:kept], None if pair is None else pair[:kept_pair])], True
        room -= len(pair or ())
        if room < reading.stride + LEAST_WINDOW:
            raise ArgumentError(
                f"text_pair is {len(pair or ())} pieces long and is read with every window of the "
                f"text: max_length must be at least "
                f"{reading.max_length - room + reading.stride + LEAST_WINDOW}, or long 'truncate'"
            )
        bounds = window_bounds(len(ids), room, reading.stride)
        return [self.piece(ids[begin:end], pair) for begin, end in bounds], False

    def token_ids(self, text: str) -> list[int]:
        """Of a text, without <sep> and <cls>."""
        with self._tokenizing:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def piece(self, ids: Sequence[int], pair: Sequence[int] | None, **notes: Any) -> Piece:
        """The sequence of a text, or a pair; ``notes`` are the piece's."""
        sep, cls = self.tokenizer.sep_token_id, self.tokenizer.cls_token_id
        row, segments = [*ids, sep], [0] * (len(ids) + 1)
        if pair is not None:
            row += [*pair, sep]
            segments += [1] * (len(pair) + 1)
        return Piece([*row, cls], [*segments, 2], notes)

    @torch.no_grad()
    def outputs(
        self, pieces: Sequence[Piece], length: int, *, last: bool
    ) -> Iterator[tuple[Any, int]]:
        """The outputs of a batch's segments, each with the memory of those before.

        Args:
            length: tokens of a segment; the first may be shorter. A batch that is no longer is one
                segment, and has no memory.
            last: of the last segment alone.

        Yields:
            The model's output, of rows that are padded on the left, and where it begins in them.
        """
        batch = self.side_by_side(pieces)
        longest = batch["input_ids"].shape[1]
        memory: tuple[Tensor, ...] | None = None
        for begin, end in boundaries(longest, length):
            kept = 0 if memory is None else memory[0].shape[0]
            asked = end == longest or not last
            # The others pass the head by: there, a short text may be nothing but padding.
            output = (self.model if asked else self.model.transformer)(
                batch["input_ids"][:, begin:end],
                token_type_ids=batch["token_type_ids"][:, begin:end],
                attention_mask=batch["attention_mask"][:, begin - kept : end],
                mems=memory,
                use_mems=longest > length,
            )
            memory = None if output.mems is None else tuple(output.mems)
            if asked:
                yield output, begin
