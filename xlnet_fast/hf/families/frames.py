"""The masks that speech encoders hand to their layers, as what the op wants to know of them."""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import Tensor

from xlnet_fast.hf.families.windows import recognized
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.transforms import can_look, nobody_looks_on

_LAST: list[tuple[Any, int, AttentionMask]] = []
"""The last mask, its state and what it became: all layers of a forward pass get the same one."""


def mask_of_frames(visible: Tensor | None) -> AttentionMask | None:
    """What a dense mask hides.

    Where its values may be read, which a GPU is waited for once a forward pass, one that is made of
    padding, a window and chunks becomes just that, by which kernels skip what is hidden.

    Args:
        visible: (B, 1, I, J) bool, True for keys that a query sees, or None.
    """
    if visible is None:
        return None
    if not nobody_looks_on():
        return _made(visible)
    # Inference tensors have no version: how many keys are seen stands for it.
    state = int(visible.sum()) if visible.is_inference() else visible._version
    if _LAST:
        last, version, mask = _LAST[0]
        if last() is visible and version == state:
            return mask
    mask = _made(visible)
    _LAST[:] = [(ref(visible), state, mask)]
    return mask


def _made(visible: Tensor) -> AttentionMask:
    shown = visible[:, 0]
    mask = recognized(shown) if can_look(shown) else None
    return AttentionMask(bits=pack_bits(~shown)) if mask is None else mask
