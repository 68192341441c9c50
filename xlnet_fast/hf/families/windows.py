"""What a dense mask of frames hides, in the few numbers that made it.

Speech encoders build their mask from padding, a window of frames to either side, and chunks of
frames, and hand it on dense. Kernels skip whole tiles by the numbers and can skip nothing by the
mask, so the numbers are guessed from it and the guess is compared with it, key by key.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xlnet_fast.masks import AttentionMask


def recognized(shown: Tensor) -> AttentionMask | None:
    """The padding, window and chunk that make a mask; None where it is not made of these.

    Rows that see nothing, as padded frames do with some, are rows of the lowest rank.

    Args:
        shown: (B, I, J) bool, True for keys that a query sees; the I queries are the last keys.
    """
    queries, keys = shown.shape[1:]
    memory = keys - queries
    if memory < 0 or queries == 0:
        return None
    real = shown.any(1)  # (B, J)
    window, chunk = _window_of(shown.any(0), memory)
    key_padding = None if bool(real.all()) else ~real
    mask = AttentionMask(key_padding=key_padding, window=window, chunk=chunk)
    rows = torch.arange(queries, device=shown.device)[None]
    hidden = mask.hidden(rows, keys, memory)
    if hidden is None:
        return mask if bool(shown.all()) else None
    if bool((hidden != shown).all()):
        return mask
    sees = shown.any(2)  # (B, I)
    if not bool(((hidden | ~sees[:, :, None]) != shown).all()):
        return None
    lowest = torch.zeros_like(real, dtype=torch.int32)
    return replace(mask, rank_q=sees.int(), rank_k=lowest)


def _window_of(shown: Tensor, memory: int) -> tuple[tuple[int | None, int | None] | None, int]:
    """A guess from (I, J), what any element of the batch sees: window and chunk."""
    keys = shown.shape[1]
    first = shown.int().argmax(1)  # (I,) of each row
    last = keys - 1 - shown.flip(1).int().argmax(1)
    right: int | None = None
    if int(last[0]) < keys - 1:
        chunk = _run_length(last)
        right = int(last[0]) + 1 - memory - chunk
    else:
        chunk = _chunk_by_first_keys(first)
    cut = (first > 0).nonzero()
    left: int | None = None
    if len(cut):
        row = int(cut[0])
        left = memory + row // chunk * chunk - int(first[row])
    if (left is None and right is None) or min(left or 0, right or 0) < 0:
        return None, 1  # none, or none that shows a row itself
    return (left, right), chunk


def _run_length(x: Tensor) -> int:
    """How many elements of (n,) are as the first is."""
    alike = x == x[0]
    return len(x) if bool(alike.all()) else int(alike.int().argmin())


def _chunk_by_first_keys(first: Tensor) -> int:
    """Of rows that see to the last key: chunks begin where the first key that is seen moves."""
    cut = (first > 0).nonzero()
    if not len(cut):
        return 1
    row = int(cut[0])
    run = _run_length(first[row:])
    is_last = row + run == len(first)  # which may be cut off
    return row if is_last and row > 0 else run
