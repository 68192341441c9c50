"""Linear layers of existing modules on the op, wherever nobody could tell.

A module's forward is passed over only if calling the module would run just that: a hook, a class of
the user's own, a forward on the instance (LoRA, quantisation, offloading, ``kernelize``) or a
compiled one is called as ever.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from xlnet_fast.ops.linear import linear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(module: nn.Module) -> bool:
    """Whether calling a module is calling its class's forward and nothing else."""
    return (
        not any(getattr(module, name) for name in _HOOKS)
        and not _has_any_global_hook()
        and module._compiled_call_impl is None
        and "forward" not in module.__dict__
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Linear``, no subclass, that is bare."""
    return type(module) is nn.Linear and is_bare(module)


def is_idle(dropout: nn.Module) -> bool:
    """Whether a module is an ``nn.Dropout`` that drops nothing now, and is bare."""
    drops = type(dropout) is not nn.Dropout or (dropout.training and dropout.p > 0)
    return not drops and is_bare(dropout)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, dropout: nn.Module, residual: Tensor | None
) -> Tensor:
    """dropout(x W^T + b) + residual, (..., in) to (..., out); see :func:`ops.linear.linear`."""
    if residual is not None and is_idle(dropout):
        return linear(x, weight, bias, residual=residual)
    output: Tensor = dropout(linear(x, weight, bias))
    return output if residual is None else output + residual
