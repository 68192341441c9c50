"""Padding of a text that is read in segments with a memory.

A padded token in front of a text stands where the memory that a text starts with would: in
a model that starts with rows of zeros it becomes such a row, and as many of the oldest rows are
hidden, so that a text padded on the left is read as it is alone. Any other padded token is hidden
from all, in this segment and, as part of the memory, in the next ones.

Letters: B batch, I tokens of the segment, M rows of memory, J = M + I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.transforms import can_look


@dataclass(frozen=True)
class Padding:
    """What padding hides and clears in a segment, and what the next one must know.

    Attributes:
        hidden: (B, J) bool, keys that no token sees, or None.
        cleared: (B, I) bool, tokens whose states are zero in every layer, or None.
        rows: (B, J) bool, keys that stay hidden as memory, or None.
        begun: (B,) bool, whether a text has had a token that is no padding; None: all have.
    """

    hidden: Tensor | None = None
    cleared: Tensor | None = None
    rows: Tensor | None = None
    begun: Tensor | None = None


def padding_of(
    attention_mask: Tensor | None,
    shape: tuple[int, int],
    memory_rows: int,
    *,
    starts: bool,
    from_zeros: bool,
    padding: Tensor | None = None,
    begun: Tensor | None = None,
) -> Padding:
    """Work out a segment's padding.

    Args:
        attention_mask: (B, I) of the segment's tokens, or (B, M + I), 0 or False for padding.
        shape: (B, I). memory_rows: M.
        starts: whether the memory is the one that texts start with. from_zeros: whether that is
            rows of zeros.
        padding: (B, M), hidden rows of the memory. begun: (B,), as :class:`Padding`'s.

    Raises:
        ShapeError: the mask has another shape. ArgumentError: it is no mask of zeros and ones.
    """
    batch, tokens = shape
    padded, padding = _parts(attention_mask, shape, memory_rows, starts, padding)
    if padded is None and padding is None and begun is None:
        return Padding()
    example = next(x for x in (padded, padding, begun) if x is not None)
    if padded is None:
        padded = example.new_zeros(batch, tokens)
    rows = padded.new_zeros(batch, memory_rows) if padding is None else padding
    if not from_zeros or (not starts and begun is None):
        hidden = torch.cat([rows, padded], dim=1)
        return Padding(hidden, None, hidden)
    waiting = padded.new_ones(batch) if begun is None else ~begun
    leading = padded.cumprod(1).bool() & waiting[:, None]
    rows = torch.cat([rows, padded & ~leading], dim=1)
    oldest = torch.arange(memory_rows + tokens, device=rows.device) < leading.sum(1, keepdim=True)
    return Padding(rows | oldest, leading, rows, ~(waiting & leading.all(1)))


def _parts(
    mask: Tensor | None,
    shape: tuple[int, int],
    memory_rows: int,
    starts: bool,
    padding: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Padded tokens (B, I) and hidden rows of the memory (B, M), each None where there is none."""
    if mask is None:
        return None, padding
    batch, tokens = shape
    whole = memory_rows + tokens
    allowed = [shape] if starts else [shape, (batch, whole)]
    if not isinstance(mask, Tensor) or tuple(mask.shape) not in allowed:
        have = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        wanted = " or ".join(map(str, allowed))
        raise ShapeError(f"attention_mask is {have}, expected a tensor of shape {wanted}")
    looks = mask.device.type == "cpu" and can_look(mask)
    if looks and not bool(((mask == 0) | (mask == 1)).all()):
        raise ArgumentError("attention_mask has other values, expected 1 for tokens, 0 for padding")
    padded = mask == 0
    if mask.shape[1] != tokens:
        padding, padded = padded[:, :memory_rows], padded[:, memory_rows:]
        padding = None if looks and not bool(padding.any()) else padding
    return (None if looks and not bool(padded.any()) else padded), padding
