"""Linear layers of existing modules on the op, wherever nobody could tell (``nn.bare``)."""

from __future__ import annotations

from torch import Tensor, nn

from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.dropout import drop, is_idle
from xlnet_fast.ops.linear import linear


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Linear``, no subclass, that is bare."""
    return type(module) is nn.Linear and is_bare(module)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, dropout: nn.Module, residual: Tensor | None
) -> Tensor:
    """dropout(x W^T + b) + residual, (..., in) to (..., out); see :func:`ops.linear.linear`."""
    if residual is not None and is_idle(dropout):
        return linear(x, weight, bias, residual=residual)
    output = drop(dropout, linear(x, weight, bias))
    return output if residual is None else output + residual
