"""The training data of Transformer-XL: segments of running text, each row's following the last.

A step reads the next L tokens of each row's stream, and the target of a token is the one behind it;
that of a segment's last token begins the next segment. So every token of the text but the first is
a target once an epoch. Source: kimiyoung/transformer-xl, ``LMOrderedIterator``, which leaves out
the first token of every row instead.

Letters: B rows of a batch, L tokens of a segment, T tokens of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.text_streams import IGNORED, TextStreams


class SegmentStreams(TextStreams):
    """Segments of running text; item ``step * streams + row``.

    Items are dicts of two arrays: ``input_ids`` (L,) and ``labels`` (L,), the ids that follow each;
    -100 behind the last token of the text. An epoch's last segment may be shorter. Up to one token
    for each row is left over where the text does not divide evenly.

    Args:
        seq_len: L.
        shuffle: another order of the documents in every epoch; the original keeps theirs.
        corpus, vocabulary, streams, processes, seed: as in :class:`TextStreams`.

    Raises:
        ArgumentError: rows that cannot be shared alike, or a text too short for one step.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: TextVocabulary,
        seq_len: int,
        streams: int,
        *,
        processes: int = 1,
        seed: int = 0,
        shuffle: bool = False,
    ) -> None:
        super().__init__(
            corpus, vocabulary, seq_len, streams, processes=processes, seed=seed, shuffle=shuffle
        )
        self.seq_len = seq_len
        self.steps = -(-self.stream_len // seq_len)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several items at once, which is how torch's data loader asks."""
        return [self._segment(*divmod(int(index), self.streams)) for index in indices]

    def _segment(self, step: int, row: int) -> dict[str, Any]:
        stream = row * self.stream_len
        begin = stream + step * self.seq_len
        end = min(begin + self.seq_len, stream + self.stream_len)
        ids = self.text.at(np.arange(begin, min(end + 1, len(self.corpus))))
        labels = np.full(end - begin, IGNORED, np.int64)
        labels[: len(ids) - 1] = ids[1:]
        return {"input_ids": ids[: end - begin], "labels": labels}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Make a batch of items of one step (``collate_fn`` of a data loader).

    Returns:
        ``input_ids`` and ``labels`` (B, L), int64.
    """
    return {
        name: torch.from_numpy(np.stack([item[name] for item in items]))
        for name in ("input_ids", "labels")
    }
