"""The masks that speech encoders hand to their layers, as what the op wants to know of them."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.transforms import can_look, nobody_looks_on

_LAST: list[tuple[Any, int, AttentionMask | None]] = []
"""The last mask, its version and what it became: all layers of a forward pass get the same one."""


def mask_of_frames(visible: Tensor | None) -> AttentionMask | None:
    """What a dense mask hides.

    On a CPU, where looking costs little, one that is made of padding alone becomes
    ``key_padding``: what a padded query sees is not what Hugging Face shows it then, for nobody
    reads its output.

    Args:
        visible: (B, 1, I, J) bool, True for keys that a query sees, or None.
    """
    if visible is None:
        return None
    if not nobody_looks_on() or visible.is_inference():
        return _made(visible)
    if _LAST:
        last, version, mask = _LAST[0]
        if last() is visible and version == visible._version:
            return mask
    mask = _made(visible)
    _LAST[:] = [(ref(visible), visible._version, mask)]
    return mask


def _made(visible: Tensor) -> AttentionMask | None:
    shown = visible[:, 0]
    if shown.device.type == "cpu" and can_look(shown) and shown.shape[1] == shown.shape[2]:
        real = shown.diagonal(dim1=-2, dim2=-1)  # (B, T)
        if bool(real.all()) and bool(shown.all()):
            return None
        if torch.equal(shown, real[:, :, None] & real[:, None, :]):
            return AttentionMask(key_padding=~real)
    return AttentionMask(bits=pack_bits(~shown))
