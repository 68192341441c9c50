"""What stands in the way of a layer: it, its attention or a method of theirs is not HF's own."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetRelativeAttention

from xlnet_fast.hf import adoption
from xlnet_fast.hf.adoption import why_kept

_ADVICE = {
    "ParamWrapper": ": PEFT's target_parameters takes a projection (H, N, D) for H experts, which "
    "is no low rank. Call xlnet_fast.linear_attention(model) and name target_modules instead"
}
"""What to do about a class in the place of HF's."""


def unwrapped(module: Any) -> Any:
    """The layer or attention module that a wrapper of PyTorch's calls."""
    return adoption.unwrapped(module, (XLNetLayer, XLNetRelativeAttention))


def obstacle(module: nn.Module) -> str | None:
    """Why a layer or attention module keeps HF's dense interface, None if it can be accelerated."""
    if isinstance(module, XLNetRelativeAttention):
        methods = ("forward", "rel_attn_core", "rel_shift_bnij")
        return why_kept(module, XLNetRelativeAttention, methods)
    if isinstance(module, XLNetLayer):
        return why_kept(module, XLNetLayer) or obstacle(unwrapped(module.rel_attn))
    name = type(module).__name__
    return f"{name} is not a layer of HF's XLNet" + _ADVICE.get(name, "")
