"""What a kind of model is to an evaluation: it makes tokens of a text, and losses of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from xlnet_fast.perplexity.tokens import Tokens


class Reader(Protocol):
    """A model with its tokenizer.

    Attributes:
        settings: how it reads, for the record: lengths, the memory at the start.
    """

    settings: dict[str, Any]

    def tokens(self, text: str, name: str, limit: int | None) -> Tokens:
        """Read a text called ``name`` in messages, or its first ``limit`` tokens.

        Raises:
            ArgumentError: there are fewer than two, or one that the vocabulary lacks.
        """
        ...

    def losses(self, streams: Tensor) -> Iterator[Tensor]:
        """The loss of every token but the first of each stream, segment by segment.

        Args:
            streams: (B, T) int64 on the model's device, T at least 2.

        Yields:
            (B, n) negative log-likelihoods in nats, n of them following those before: T - 1 in all.
        """
        ...
