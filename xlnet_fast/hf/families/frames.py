"""The masks that speech encoders hand to their layers, as what the op wants to know of them."""

from __future__ import annotations

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
        visible: (B, 1, I, J) bool, True for keys that a query sees, or None.
    """
    return None if visible is None else _LAST.of(visible)


def _made(visible: Tensor) -> AttentionMask:
    shown = visible[:, 0]
    mask = recognized(shown) if can_look(shown) else None
    return AttentionMask(bits=pack_bits(~shown)) if mask is None else mask


_LAST = LastMade(_made)
