"""Dropout of hidden states with the masks of our own generator, where that is the faster.

PyTorch draws a CPU's dropout mask on one thread, number by number: a sixth of a training step in
bf16 (docs/measured.md). Philox makes it on all threads, and again in the backward pass instead of
keeping it. Only the numbers differ from PyTorch's, as another seed would. A compiler fuses
PyTorch's own dropout with what surrounds it and loses more than that by drawing the numbers.
"""

from __future__ import annotations

from torch import Tensor, nn

from xlnet_fast import _extension
from xlnet_fast.nn.bare import is_bare
from xlnet_fast.ops.dropout import dropout
from xlnet_fast.ops.linear import is_plain, is_transformed
from xlnet_fast.philox import draw_seed
from xlnet_fast.transforms import constant_when_traced

LEAST = 1 << 14
"""Elements from which on a mask is made by us: drawing a seed takes as long as a smaller mask."""


def is_idle(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Dropout`` that drops nothing now, and is bare."""
    drops = type(module) is not nn.Dropout or (module.training and module.p > 0)
    return not drops and is_bare(module)


def rate_of(module: nn.Module) -> float | None:
    """The share that a dropout drops now; None where only calling the module can tell.

    That is any other module in its place, one with a hook, and one that drops everything.
    """
    if type(module) not in (nn.Dropout, nn.Identity) or not is_bare(module):
        return None
    rate = module.p if isinstance(module, nn.Dropout) and module.training else 0.0
    return rate if rate < 1.0 else None


def drop(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for a module that drops elements of x; as large as x."""
    if is_idle(module):
        return x
    if type(module) is nn.Dropout and _is_ours(module, x):
        return dropout(x, module.p, draw_seed("cpu"))
    result: Tensor = module(x)
    return result


def _is_ours(module: nn.Dropout, x: Tensor) -> bool:
    return (
        module.training
        and 0.0 < module.p < 1.0
        and not module.inplace
        and x.numel() >= LEAST
        and is_plain(x)
        and x.is_floating_point()
        and is_bare(module)
        and not is_transformed()
        and _has_kernel()
    )


@constant_when_traced  # a traced graph must not load libraries
def _has_kernel() -> bool:
    return _extension.load() is not None
