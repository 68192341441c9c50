"""Memory that knows its padding: documents of unequal length, side by side over many segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Memory(tuple[Tensor, ...]):
    """Memory of all layers, as ``mems``, and which of its rows are padding.

    Hugging Face's memory forgets what was padding: the next segment sees it. A text that is read
    with ``mems=Memory()`` at first, and later with the ``mems`` of the output before, hides it, so
    that a batch gives what each of its texts gives alone. Pad on the left: on the right, padding
    lies between a text and its continuation, and counts as distance.

    Args:
        layers: one (M, B, H) tensor per layer; none at the beginning.
        padding: (B, M) bool, True for padding, or None where nothing is.
    """

    padding: Tensor | None

    def __new__(cls, layers: Iterable[Tensor] = (), padding: Tensor | None = None) -> Memory:
        """As tuple, with the padding beside."""
        memory = super().__new__(cls, layers)
        memory.padding = padding
        return memory

    def select(self, elements: Sequence[int] | Tensor) -> Memory:
        """The memory of some elements of the batch, in this order: the others have ended.

        Args:
            elements: their indices in the batch.
        """
        if not self:
            return self
        chosen = torch.as_tensor(elements, dtype=torch.int64, device=self[0].device)
        padding = None if self.padding is None else self.padding[chosen]
        return Memory((layer[:, chosen] for layer in self), padding)


def padding_kept(
    padding: Tensor | None, memory_length: int, mem_len: int | None, reuse_len: int | None
) -> Tensor | None:
    """Of (B, M + I) padding, the part that belongs to the next memory (``concat_memory``)."""
    if padding is None:
        return None
    seen = padding[:, : memory_length + reuse_len] if reuse_len else padding
    return seen[:, -mem_len:] if mem_len else seen
