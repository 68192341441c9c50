"""Dropout with a mask that the seed determines, made again in the backward pass.

Plain tensors on the CPU take one kernel that makes the mask as it goes; all others, and plain code
under transforms, make the mask first. Both give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlnet_fast import transforms
from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels import cpu
from xlnet_fast.kernels.cpu import dropout as cpu_dropout
from xlnet_fast.kernels.cpu.addresses import DTYPES
from xlnet_fast.ops._contracts._registry import LIBRARY, refuse_forward_mode
from xlnet_fast.ops._validation import check_dropout, check_float
from xlnet_fast.ops.linear import is_plain
from xlnet_fast.philox import keep_mask


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """x / (1 - p) where the mask keeps it, else 0.

    Args:
        x: (..., width), floating point. p: probability of dropping an element, 0 <= p < 1.
        seed: one int64 element; :func:`xlnet_fast.philox.keep_mask` of one batch element, one head,
            as many rows as x has, and ``width`` keys.

    Returns:
        As x, contiguous; differentiable.

    Raises:
        ArgumentError: x has no dimension or is not floating point, p is outside [0, 1), or the seed
            is not one int64.
    """
    check_float("x", x)
    if x.dim() == 0:
        raise ArgumentError("x has no dimension, expected (..., width)")
    check_dropout(p, seed)
    if p == 0.0:
        return x
    drop = drop_by_mask if transforms.active() else torch.ops.xlnet_fast.dropout
    result: Tensor = drop(x, seed, p)
    return result


LIBRARY.define("dropout(Tensor x, Tensor seed, float p) -> Tensor")


def _dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    refuse_forward_mode("dropout")
    if not has_kernel(x, seed):
        return drop_by_mask(x, seed, p)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    cpu_dropout.dropout(x, p, int(seed), out)
    return out


def has_kernel(x: Tensor, seed: Tensor) -> bool:
    """Whether the C++ kernel can drop elements of x."""
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and is_plain(x)
        and is_plain(seed)
        and cpu.why_unavailable() is None
    )


def drop_by_mask(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """:func:`dropout` in plain PyTorch, with a mask as large as x."""
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    width = x.shape[-1]
    keep = keep_mask(seed, p, 1, 1, (0, x.numel() // width), width, device=x.device)
    return torch.where(keep.view(x.shape), x, 0.0).contiguous().mul_(1.0 / (1.0 - p))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same map as forward: it is linear and its matrix is diagonal."""
    (seed,) = ctx.saved_tensors
    return dropout(grad, ctx.p, seed), None, None


LIBRARY.impl("dropout", _dropout, "CompositeExplicitAutograd")
torch.library.register_fake(
    "xlnet_fast::dropout",
    lambda x, seed, p: torch.empty_like(x, memory_format=torch.contiguous_format),
    lib=LIBRARY,
)
torch.library.register_autograd(
    "xlnet_fast::dropout", _backward, setup_context=_setup_context, lib=LIBRARY
)
