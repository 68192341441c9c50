"""Activations of Hugging Face's that a linear op of ours can apply itself."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from xlnet_fast.nn.bare import is_bare


def is_exact_gelu(activation: Any) -> bool:
    """``F.gelu``, by itself or in a module of HF's or PyTorch's that is bare."""
    if not isinstance(activation, nn.Module):
        return activation is F.gelu
    exact = type(activation) is GELUActivation and activation.act is F.gelu
    exact = exact or (type(activation) is nn.GELU and activation.approximate == "none")
    return exact and is_bare(activation)
