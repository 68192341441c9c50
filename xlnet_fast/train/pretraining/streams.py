"""The pretraining data of XLNet: parallel streams of text, so that each row's memory goes on.

The corpus is cut into equal streams, one per row of the batch. Step s of a stream starts
``reuse_len`` tokens behind step s - 1, and a sequence is

    reuse_len tokens of running text | A <sep> B <sep> <cls>      segments 0 | 0 0 1 1 2

where A goes on with the text and B is either what follows A (label 1) or a random place (label 0).
Source: zihangdai/xlnet, ``data_utils.py``; where this differs, it says so.

Letters: B rows of a batch, L tokens of a sequence, I' targets, T tokens of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary
from xlnet_fast.train.pretraining.permutation import (
    CONTEXT_RANK,
    Bools,
    Floats,
    Ints,
    SpanSampling,
    block_order,
    compact_positions,
    draws_for_targets,
    next_base,
    sample_targets,
    visibility_ranks,
)
from xlnet_fast.train.pretraining.text_streams import IGNORED, TextStreams

FUNCTIONAL = 3  # <sep> behind A, <sep> and <cls> behind B
_PAIR_DRAWS = 3  # whether B goes on from A, where A ends, where another B begins


@dataclass(frozen=True)
class SequenceShape:
    """What a sequence looks like, and how its targets are drawn.

    Attributes:
        seq_len: L. reuse_len: tokens by which a step advances, and length of the first part.
        perm_size: length of a block of the permutation; at most the length of either part.
        num_predict: I', half of them in each part, the odd one in the first.
        bi_data: the second half of the rows reads the streams backwards.
        spans: how targets are drawn.

    Raises:
        ArgumentError: lengths that do not fit each other; says which and why.
    """

    seq_len: int = 512
    reuse_len: int = 256
    perm_size: int = 256
    num_predict: int = 85
    bi_data: bool = False
    spans: SpanSampling = field(default_factory=SpanSampling)

    def __post_init__(self) -> None:
        second = self.seq_len - self.reuse_len
        if self.reuse_len < 1 or second < FUNCTIONAL + 2:
            raise ArgumentError(
                f"reuse_len is {self.reuse_len} and seq_len {self.seq_len}; expected reuse_len >= "
                f"1 and seq_len >= reuse_len + {FUNCTIONAL + 2} (two texts, two <sep>, one <cls>)"
            )
        if not 1 <= self.perm_size <= min(self.reuse_len, second):
            raise ArgumentError(
                f"perm_size is {self.perm_size}, expected 1 to {min(self.reuse_len, second)}, the "
                "length of the shorter part"
            )
        if not self.num_predict >= 1 or self.goals[0] > self.reuse_len or self.goals[1] > second:
            raise ArgumentError(
                f"num_predict is {self.num_predict}, expected 1 to twice the length of the "
                f"shorter part ({min(self.reuse_len, second)} tokens)"
            )

    @property
    def goals(self) -> tuple[int, int]:
        """Targets of the first and of the second part."""
        return self.num_predict - self.num_predict // 2, self.num_predict // 2

    @property
    def pair_len(self) -> int:
        """Tokens of A and B together."""
        return self.seq_len - self.reuse_len - FUNCTIONAL


class PermutationStreams(TextStreams):
    """The pretraining sequences of XLNet; item ``step * streams + row``.

    The sequence of a stream at a step depends on the seed, the epoch, the step and the stream
    alone.

    Items are dicts of arrays: ``input_ids`` (L,), ``token_type_ids`` (L,), ``permutation_ranks``
    (two of (L,)), ``target_positions`` (I',), negative behind the last target, ``labels`` (I',),
    -100 there, and ``pair_label``. :func:`collate` makes a batch of them.

    Args:
        shape: of the sequences.
        corpus, vocabulary, streams, processes, seed, shuffle: as in :class:`TextStreams`.

    Raises:
        ArgumentError: rows that cannot be shared alike, or a text too short for one step.
    """

    vocabulary: Vocabulary

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        shape: SequenceShape,
        streams: int,
        *,
        processes: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            corpus,
            vocabulary,
            shape.seq_len,
            streams,
            processes=processes,
            directions=2 if shape.bi_data else 1,
            seed=seed,
            shuffle=shuffle,
        )
        self.shape = shape
        self.steps = (self.stream_len - shape.seq_len) // shape.reuse_len + 1

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several items at once, which is how torch's data loader asks."""
        step, position = np.divmod(np.asarray(indices, np.int64), self.streams)
        stream = self.stream_at(position)
        batch = _Sequences(self, step, stream).make()
        return [
            {
                name: (values[0][row], values[1][row]) if isinstance(values, tuple) else values[row]
                for name, values in batch.items()
            }
            for row in range(len(indices))
        ]

    def stream_at(self, position: Ints) -> Ints:
        """The stream at a position of a step: each process has forward rows, then backward ones."""
        if not self.shape.bi_data:
            return position
        own = self.streams // self.processes
        process, row = np.divmod(position, own)
        backward, row = np.divmod(row, own // 2)
        found: Ints = backward * self.texts + process * (own // 2) + row
        return found

    def draws(self, step: Ints, stream: Ints, count: int) -> Floats:
        """(R, count) uniform numbers that belong to these steps and streams alone."""
        # One generator moved to each row's place: to make one takes longer than to draw from it.
        bits = np.random.Philox(key=np.array([self.seed % 2**64, 0], np.uint64))
        generator, place = np.random.Generator(bits), bits.state
        key, counter = place["state"]["key"], place["state"]["counter"]
        counter[3] = self.epoch
        drawn = np.empty((len(step), count))
        for row, numbers in enumerate(drawn):
            key[1], counter[2] = stream[row], step[row]
            bits.state = place
            generator.random(out=numbers)
        return drawn


class _Sequences:
    """Makes the sequences of R (step, stream) pairs, all rows at once."""

    def __init__(self, data: PermutationStreams, step: Ints, stream: Ints) -> None:
        self.data, self.shape = data, data.shape
        self.text, self.length = data.text, data.stream_len
        self.backward = stream >= data.texts
        self.start = stream % data.texts * self.length  # of the stream in the text
        self.begin = step * self.shape.reuse_len
        self.parts = [
            (0, self.shape.reuse_len, self.shape.goals[0]),
            (self.shape.reuse_len, self.shape.seq_len, self.shape.goals[1]),
        ]
        self.counts = [draws_for_targets(end - begin, goal) for begin, end, goal in self.parts]
        total = _PAIR_DRAWS + sum(self.counts) + 2 * self.shape.perm_size
        self._draws = data.draws(step, stream, total)
        self._used = 0

    def _draw(self, count: int) -> Floats:
        self._used += count
        return self._draws[:, self._used - count : self._used]

    def make(self) -> dict[str, Any]:
        """The fields of the items, each with a first dimension R."""
        a_len, b_begin, label = self._pair()
        ids, segments, functional = self._assemble(a_len, b_begin)
        targets = self._targets(ids) & ~functional
        ranks = self._ranks(targets, functional)
        positions = compact_positions(targets, self.shape.num_predict)
        taken = np.take_along_axis(ids, np.maximum(positions, 0), axis=1)
        return {
            "input_ids": ids,
            "token_type_ids": segments,
            "permutation_ranks": ranks,
            "target_positions": positions,
            "labels": np.where(positions < 0, IGNORED, taken),
            "pair_label": label,
        }

    def _pair(self) -> tuple[Ints, Ints, Ints]:
        """Length of A, beginning of B in the stream, and 1 where B goes on from A."""
        draw = self._draw(_PAIR_DRAWS)
        begin, room = self.begin + self.shape.reuse_len, self.shape.pair_len
        first, last, end = self._cuts(begin, room)
        cuts = last - first
        chosen = first + (draw[:, 1] * cuts).astype(np.int64)
        a_end = np.where(cuts > 0, self._cut(chosen), end)
        goes_on = (cuts > 0) & (draw[:, 0] >= 0.5)

        want = np.maximum(1, room - (a_end - begin))
        other = (draw[:, 2] * (self.length - want)).astype(np.int64)
        other_end = np.minimum(self._sentence_end(other + want), self.length)
        other = self._sentence_begin(other)
        b_begin = np.where(goes_on, a_end, other)
        b_end = np.where(goes_on, end, other_end)

        # Cut the longer one until they fit, one token at a time, B where they are alike.
        a, b = a_end - begin, b_end - b_begin
        excess = a + b - room
        first_cut = np.minimum(excess, np.abs(a - b))
        rest = excess - first_cut
        a = a - np.where(a > b, first_cut, 0) - rest // 2
        return a, b_begin, goes_on.astype(np.int64)

    def _cuts(self, begin: Ints, room: int) -> tuple[Ints, Ints, Ints]:
        """Which sentence starts lie less than ``room`` behind ``begin``, and the next one's place.

        Starts are numbered along the stream; see :meth:`_cut`.
        """
        first = self._number(begin, behind=True)
        last = self._number(begin + room, behind=False)
        return first, last, np.minimum(self._cut(last), self.length)

    def _number(self, position: Ints, *, behind: bool) -> Ints:
        """The number of the first sentence start at a position, or strictly behind it.

        A backward stream ends its sentences where the forward one begins them: its position p lies
        between the forward tokens T - p and T - p - 1, and its starts are counted downwards.
        """
        sentences = self.text.sentences
        ahead = np.searchsorted(sentences, self.start + position, "right" if behind else "left")
        mirrored = self.start + self.length - position
        back = -np.searchsorted(sentences, mirrored, "left" if behind else "right")
        return np.where(self.backward, back, ahead)

    def _cut(self, number: Ints) -> Ints:
        """The place of a numbered sentence start in its stream; behind its end if there is none."""
        sentences = self.text.sentences
        known = np.where(self.backward, -number - 1, number)
        inside = (known >= 0) & (known < len(sentences))
        place = sentences[np.clip(known, 0, len(sentences) - 1)] - self.start
        place = np.where(self.backward, self.length - place, place)
        return np.where(inside, place, self.length)

    def _sentence_end(self, position: Ints) -> Ints:
        return self._cut(self._number(position, behind=False))

    def _sentence_begin(self, position: Ints) -> Ints:
        """The last sentence start at or before a position; 0 where there is none."""
        number = self._number(position, behind=True) - 1
        sentences = self.text.sentences
        known = np.where(self.backward, -number - 1, number)
        place = np.where(known < len(sentences), self._cut(number), 0)
        return np.clip(place, 0, position)

    def _assemble(self, a_len: Ints, b_begin: Ints) -> tuple[Ints, Ints, Bools]:
        """(R, L) ids, segments, and where <sep> and <cls> are."""
        shape, vocabulary = self.shape, self.data.vocabulary
        column = np.arange(shape.seq_len)[None]
        behind_a = (shape.reuse_len + a_len)[:, None]  # place of the first <sep>
        ends = shape.seq_len - 2
        position = np.where(
            column < behind_a,
            self.begin[:, None] + column,
            b_begin[:, None] + column - behind_a - 1,
        )
        functional = (column == behind_a) | (column >= ends)
        place = np.where(functional, 0, position)
        place = np.where(self.backward[:, None], self.length - 1 - place, place)
        ids = self.text.at(self.start[:, None] + place)
        ids[functional] = vocabulary.sep
        ids[:, -1] = vocabulary.cls
        segments = (column > behind_a).astype(np.int64)
        segments[:, -1] = 2
        return ids, segments, functional

    def _targets(self, ids: Ints) -> Bools:
        """(R, L) drawn tokens, <sep> and <cls> among them, in each part as many as it shall."""
        drawn = []
        for (begin, end, goal), count in zip(self.parts, self.counts, strict=True):
            starts = self.data.vocabulary.starts[ids[:, begin:end]]
            # Words of a backward stream begin where they do in the text.
            starts = np.where(self.backward[:, None], starts[:, ::-1], starts)
            goals = np.full(len(ids), goal)
            found = sample_targets(
                starts, np.ones_like(starts), goals, self._draw(count), self.shape.spans
            )
            drawn.append(np.where(self.backward[:, None], found[:, ::-1], found))
        return np.concatenate(drawn, axis=1)

    def _ranks(self, targets: Bools, functional: Bools) -> tuple[NDArray[Any], NDArray[Any]]:
        """rank_q and rank_k (R, L): the second part sees the first, not the other way round."""
        base, parts = CONTEXT_RANK, []
        for begin, end, _ in self.parts:
            order = block_order(self._draw(self.shape.perm_size), end - begin)
            part = slice(begin, end)
            parts.append(visibility_ranks(order, targets[:, part], functional[:, part], base))
            base = next_base(base, end - begin, self.shape.perm_size)
        rank_q, rank_k = (
            np.concatenate(pair, axis=1, dtype=np.int32) for pair in zip(*parts, strict=True)
        )
        return rank_q, rank_k
