"""The masks that speech encoders hand to their layers, as what the op wants to know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor

from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.transforms import can_look, nobody_looks_on

_Fact = TypeVar("_Fact")
_LAST: dict[Callable[[Tensor], Any], tuple[Any, int, Any]] = {}
"""The last mask, its version and what each function found in it: all layers get the same mask."""


def mask_of_frames(visible: Tensor | None, *, exact_padding: bool = False) -> AttentionMask | None:
    """What a dense mask hides.

    On a CPU, where looking costs little, one that is made of padding alone becomes
    ``key_padding``.

    Args:
        visible: (B, 1, I, J) bool, True for keys that a query sees; or floating, 0 for those and
            anything else for others (:func:`is_readable`); or None.
        exact_padding: a padded query sees what the mask shows it. Without, it sees the valid keys
            where the mask shows it none: nobody reads its output then.
    """
    if visible is None:
        return None
    return _once(visible, _made_exactly if exact_padding else _made)


def is_readable(mask: Tensor | None, implementation: str | None) -> bool:
    """Whether a mask says who sees whom and nothing else, so that the op does what HF does with it.

    A bool one is read so by "sdpa"; HF's eager code would add it to the scores, as ones. HF's own
    additive ones have 0 and the least number of their dtype, which must be looked at, once for all
    layers; one that may not be looked at is not readable.

    Args:
        mask: as a layer gets it, (B, 1, I, J). implementation: of attention, in the config.
    """
    if mask is None:
        return True
    if mask.dim() != 4 or mask.shape[1] != 1:
        return False
    if mask.dtype == torch.bool:
        return implementation == "sdpa"
    return mask.is_floating_point() and can_look(mask) and _once(mask, _is_all_or_none)


def _is_all_or_none(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all())


def _once(mask: Tensor, find: Callable[[Tensor], _Fact]) -> _Fact:
    """``find(mask)``, remembered while the mask stays what it was."""
    if not nobody_looks_on() or mask.is_inference():
        return find(mask)
    last = _LAST.get(find)
    if last is not None and last[0]() is mask and last[1] == mask._version:
        known: _Fact = last[2]
        return known
    found = find(mask)
    _LAST[find] = ref(mask), mask._version, found
    return found


def _made(visible: Tensor) -> AttentionMask | None:
    shown = _shown(visible)
    if _may_be_padding(shown):
        real = shown.diagonal(dim1=-2, dim2=-1)  # (B, T)
        if torch.equal(shown, real[:, :, None] & real[:, None, :]):
            return None if bool(real.all()) else AttentionMask(key_padding=~real)
    return _made_exactly(visible)


def _made_exactly(visible: Tensor) -> AttentionMask | None:
    shown = _shown(visible)
    if _may_be_padding(shown):
        real = shown.diagonal(dim1=-2, dim2=-1)
        if torch.equal(shown, real[:, None, :].expand_as(shown)):
            return None if bool(real.all()) else AttentionMask(key_padding=~real)
    return AttentionMask(bits=pack_bits(~shown))


def _shown(visible: Tensor) -> Tensor:
    """(B, I, J) bool, True for keys that a query sees."""
    shown = visible[:, 0]
    return shown if shown.dtype == torch.bool else shown == 0


def _may_be_padding(shown: Tensor) -> bool:
    """Whether to look at each query's own key, which padding of keys alone shows as all others."""
    return shown.device.type == "cpu" and can_look(shown) and shown.shape[1] == shown.shape[2]
