"""Who reads the probabilities of an attention module beside its output: then HF makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xlnet_fast.hf.versions import recorded_outputs

_CAPTURING = "output_capturing_hook"
"""The name of the hook that transformers puts on a module for ``output_attentions``, for good."""

IMPLEMENTATIONS = (None, "eager", "sdpa")
"""Of attention, whose result we give. What others would do is theirs alone to say."""


def why_not_implementation(module: Any) -> str | None:
    """Why a module's ``attn_implementation`` is not ours to replace; None if it is."""
    name = module.config._attn_implementation
    if name in IMPLEMENTATIONS:
        return None
    return f"attn_implementation is {name!r}, and we stand in for 'sdpa' and 'eager'"


def wants_probabilities(module: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of an attention module of HF's is to return its probabilities.

    With "sdpa" there are none, as HF says. A hook of a user's may look at them.
    """
    if module.config._attn_implementation == "sdpa":
        return False
    return bool(kwargs.get("output_attentions")) or _is_watched(module)


def _is_watched(module: nn.Module) -> bool:
    hooks = list(module._forward_hooks.values())
    if not hooks:
        return False
    if any(getattr(hook, "__name__", "") != _CAPTURING for hook in hooks):
        return True
    return torch.compiler.is_compiling() or "attentions" in recorded_outputs()
