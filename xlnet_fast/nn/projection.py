"""A projection of the attention that is a module: an ``nn.Linear``, or what a tool put there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.linear import is_plain_linear, linear_residual
from xlnet_fast.ops.linear import linear

_COMPUTED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def project(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, (..., in) to (..., out), by the op where nobody could tell."""
    if _is_ours(module):
        weight, bias = _like(module.weight, x), _like(module.bias, x)
        return linear(x, weight, bias)
    return _call(module, x)


def project_residual(
    module: nn.Module, x: Tensor, dropout: nn.Module, residual: Tensor | None
) -> Tensor:
    """``dropout(module(x)) + residual``, (..., in) to (..., out)."""
    if _is_ours(module):
        weight, bias = _like(module.weight, x), _like(module.bias, x)
        return linear_residual(x, weight, bias, dropout, residual)
    output = drop(dropout, _call(module, x))
    return output if residual is None else output + residual


def _is_ours(module: nn.Module) -> bool:
    """A bare ``nn.Linear`` whose weight is a plain tensor, neither quantised nor distributed."""
    return is_plain_linear(module) and type(module.weight) in (Tensor, nn.Parameter)


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _call(module: nn.Module, x: Tensor) -> Tensor:
    """In the module's dtype: HF's ``from_pretrained(dtype=bf16)`` leaves these weights in fp32."""
    weight = getattr(module, "weight", None)
    own = weight.dtype if isinstance(weight, Tensor) else x.dtype
    if own == x.dtype or own not in _COMPUTED_IN or _casts_by_itself(x):
        output: Tensor = module(x)
        return output
    return module(x.to(own)).to(x.dtype)


def _casts_by_itself(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
