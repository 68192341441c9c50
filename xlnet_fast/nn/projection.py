"""A projection of the attention that is a module: an ``nn.Linear``, or what a tool put there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.linear import is_plain_linear, linear_residual
from xlnet_fast.ops.linear import linear

_COMPUTED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def project(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, (..., in) to (..., out), by the op where nobody could tell."""
    ours = _weights(module, x)
    return _call(module, x) if ours is None else linear(x, *ours)


def project_residual(
    module: nn.Module, x: Tensor, dropout: nn.Module, residual: Tensor | None
) -> Tensor:
    """``dropout(module(x)) + residual``, (..., in) to (..., out)."""
    ours = _weights(module, x)
    if ours is not None:
        return linear_residual(x, *ours, dropout, residual)
    output = drop(dropout, _call(module, x))
    return output if residual is None else output + residual


def _weights(module: Any, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a bare ``nn.Linear`` in the dtype of x, None of any other module.

    A weight that is no plain tensor (quantised, distributed) is the module's affair as well.
    """
    if not is_plain_linear(module) or type(module.weight) not in (Tensor, nn.Parameter):
        return None
    bias = module.bias
    return module.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _call(module: nn.Module, x: Tensor) -> Tensor:
    """In the module's dtype: HF's ``from_pretrained(dtype=bf16)`` leaves these weights in fp32."""
    weight = getattr(module, "weight", None)
    own = weight.dtype if isinstance(weight, Tensor) else x.dtype
    if own == x.dtype or own not in _COMPUTED_IN or casts_by_itself(x):
        output: Tensor = module(x)
        return output
    output = module(x.to(own))
    return output.to(x.dtype)


def casts_by_itself(x: Tensor) -> bool:
    """Whether autocast is on where x is: operands of a product need not share a dtype then."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
