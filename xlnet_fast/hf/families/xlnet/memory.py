"""Memory that knows its padding: documents of unequal length, side by side over many segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError

_UNSAID: Any = object()


class Memory(tuple[Tensor, ...]):
    """Memory of all layers, as ``mems``, and which of its rows are padding.

    Hugging Face's memory forgets what was padding: the next segment sees it. A text that is read
    with ``mems=Memory()`` at first, and later with the ``mems`` of the output before, hides it, so
    that a batch gives what each of its texts gives alone. Pad on the left: on the right, padding
    lies between a text and its continuation, and counts as distance. With ``reuse_len`` or
    ``same_length`` padding takes the place of tokens that the text alone would remember or see.

    A slice of it, or ``tuple(memory)``, is a plain tuple, which has forgotten.

    Args:
        layers: one (M, B, H) tensor per layer; none at the beginning.
        padding: (B, M) bool, True for padding, or None where nothing is; to be said with layers.

    Raises:
        ArgumentError: padding was not said, as by a tool that makes the tuple anew, or is not bool.
    """

    padding: Tensor | None

    def __new__(cls, layers: Iterable[Tensor] = (), padding: Tensor | None = _UNSAID) -> Memory:
        """As tuple, with the padding beside."""
        memory = super().__new__(cls, layers)
        if padding is _UNSAID and memory:
            raise ArgumentError(
                "a Memory of layers needs padding, (B, M) bool or None for none: whatever made it "
                "anew without (accelerate's conversion of outputs, for example) would lose it. "
                "Hand it a plain tuple(memory), and carry memory.padding beside"
            )
        memory.padding = None if padding is _UNSAID else padding
        if memory.padding is not None and memory.padding.dtype != torch.bool:
            raise ArgumentError(f"padding has dtype {memory.padding.dtype}, expected torch.bool")
        return memory

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles keep the padding."""
        return Memory, (tuple(self), self.padding)

    def select(self, elements: Sequence[int] | Sequence[bool] | Tensor) -> Memory:
        """The memory of some elements of the batch, in this order: the others have ended.

        Args:
            elements: their indices in the batch, or one bool for each element, True to keep it.

        Raises:
            ShapeError: not one dimension, or another number of bools than elements.
            ArgumentError: neither integers nor bools.
        """
        chosen = torch.as_tensor(elements)
        if chosen.dim() != 1:
            raise ShapeError(f"elements has shape {tuple(chosen.shape)}, expected one dimension")
        if not self:
            return self
        if chosen.dtype == torch.bool:
            if len(chosen) != self[0].shape[1]:
                batch = self[0].shape[1]
                raise ShapeError(
                    f"elements has {len(chosen)} bools, expected one for each of {batch}"
                )
            chosen = chosen.nonzero().squeeze(1)
        elif chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
            raise ArgumentError(f"elements has dtype {chosen.dtype}, expected integers or bools")
        chosen = chosen.to(self[0].device, torch.int64)
        padding = None if self.padding is None else self.padding[chosen]
        return Memory((layer[:, chosen] for layer in self), padding)

    def first(self, rows: int) -> Memory:
        """The first rows of it, as ``generate`` cuts off the last ones."""
        padding = None if self.padding is None else self.padding[:, :rows]
        return Memory((layer[:rows] for layer in self), padding)

    def to(self, *args: Any, **kwargs: Any) -> Memory:
        """As ``torch.Tensor.to`` of each layer; the padding takes on the device alone."""
        layers = [layer.to(*args, **kwargs) for layer in self]
        padding = self.padding
        if padding is not None and layers:
            padding = padding.to(layers[0].device)
        return Memory(layers, padding)


def padding_kept(
    padding: Tensor | None, memory_length: int, mem_len: int | None, reuse_len: int | None
) -> Tensor | None:
    """Of (B, M + I) padding, the part that belongs to the next memory (``concat_memory``)."""
    if padding is None:
        return None
    seen = padding[:, : memory_length + reuse_len] if reuse_len else padding
    return seen[:, -mem_len:] if mem_len else seen
