"""A text cut into parallel streams, one per row of the batch, so that each row's memory goes on.

Letters: T tokens of a stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary

Ints = NDArray[np.int64]

IGNORED = -100
"""Label of a prediction that does not count, as in torch's cross-entropy."""


class TextStreams(Dataset[dict[str, Any]]):
    """Map-style dataset over equal streams of a text; item ``step * streams + row``.

    Read in order with one batch per step it keeps every row's text running. With ``processes``
    processes, consecutive batches of ``streams / processes`` items are those of process 0, 1, ...:
    the order in which accelerate and Hugging Face's Trainer hand out batches. An item depends on
    the seed, the epoch and its index alone, so any can be made again at any time, on any number of
    processes.

    Attributes:
        stream_len: T. steps: of an epoch.
        text: the corpus in the order of this epoch.

    Args:
        corpus: the text. vocabulary: of the tokenizer that made it.
        seq_len: tokens of a sequence; a stream has as many at least.
        streams: rows of the global batch. processes: how many share them.
        directions: 2 where half of the rows of each process read the same streams backwards.
        seed: of everything random.
        shuffle: another order of the documents in every epoch.

    Raises:
        ArgumentError: rows that cannot be shared alike, or a text too short for one step.
    """

    steps: int

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: TextVocabulary,
        seq_len: int,
        streams: int,
        *,
        processes: int,
        directions: int = 1,
        seed: int,
        shuffle: bool,
    ) -> None:
        if processes < 1:
            raise ArgumentError(f"processes is {processes}, expected at least 1")
        part = directions * processes
        if streams < 1 or streams % part:
            raise ArgumentError(
                f"{streams} rows cannot be shared by {processes} process(es)"
                + (" in two directions each (bi_data)" if directions == 2 else "")
                + f": expected a multiple of {part}"
            )
        self.corpus, self.vocabulary = corpus, vocabulary
        self.streams, self.processes = streams, processes
        self.seed, self.shuffle = seed, shuffle
        self.texts = streams // directions
        self.stream_len = len(corpus) // self.texts
        if self.stream_len < seq_len:
            raise ArgumentError(
                f"the text has {len(corpus)} tokens, which is {self.stream_len} for each of "
                f"{self.texts} streams; a sequence has {seq_len}: give more text, fewer "
                "rows or a shorter seq_len"
            )
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the documents for this epoch (accelerate's data loader calls it)."""
        self.epoch = epoch
        self.text = ReorderedText(self.corpus, self.documents(epoch))

    def documents(self, epoch: int) -> Ints:
        """Numbers of the documents in the order of an epoch."""
        count = len(self.corpus.documents)
        if not self.shuffle:
            return np.arange(count)
        return np.random.default_rng([self.seed % 2**64, epoch]).permutation(count)

    def __len__(self) -> int:
        return self.steps * self.streams

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several items at once, which is how torch's data loader asks; each has ``labels``."""


class ReorderedText:
    """A corpus with its documents in another order, without copying its tokens.

    Attributes:
        sentences: positions at which a sentence begins, in the new order.
    """

    def __init__(self, corpus: Corpus, documents: Ints) -> None:
        begin = corpus.documents
        length = np.diff(begin, append=len(corpus))[documents]
        self._tokens = corpus.tokens
        self._begin = np.cumsum(length) - length  # of each document, in the new order
        self._moved = begin[documents] - self._begin
        first = np.searchsorted(corpus.sentences, begin)
        count = np.diff(first, append=len(corpus.sentences))[documents]
        behind = np.cumsum(count) - count
        which = np.arange(count.sum()) - np.repeat(behind - first[documents], count)
        self.sentences: Ints = corpus.sentences[which] - np.repeat(self._moved, count)

    def at(self, positions: Ints) -> Ints:
        """The token ids at these positions, int64."""
        document = np.searchsorted(self._begin, positions, "right") - 1
        return self._tokens[positions + self._moved[document]].astype(np.int64)
