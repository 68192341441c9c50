"""The masks that speech encoders hand to their layers, as what the op wants to know of them."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.hf.families.windows import recognized
from xlnet_fast.hf.last_made import LastMade
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.transforms import can_look


def mask_of_frames(visible: Tensor | None) -> AttentionMask | None:
    """What a dense mask hides.

    Where its values may be read, which a GPU is waited for once a forward pass, one that is made of
    padding, a window and chunks becomes just that, by which kernels skip what is hidden.

    Args:
        visible: (B, 1, I, J) bool, True for keys that a query sees; or floating, 0 for those and
            anything else for others (:func:`is_readable`); or None.
    """
    return None if visible is None else _MASKS.of(visible)


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
    return mask.is_floating_point() and can_look(mask) and _ALL_OR_NONE.of(mask)


def _is_all_or_none(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all())


def _made(visible: Tensor) -> AttentionMask:
    shown = visible[:, 0]
    if shown.dtype != torch.bool:
        shown = shown == 0
    mask = recognized(shown) if can_look(shown) else None
    return AttentionMask(bits=pack_bits(~shown)) if mask is None else mask


_MASKS = LastMade(_made)
_ALL_OR_NONE = LastMade(_is_all_or_none)
