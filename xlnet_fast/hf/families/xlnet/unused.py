"""Zero gradients for parameters that a step leaves out, for DDP, which waits for all of them.

Without ``target_mapping`` nothing uses ``mask_emb``, without ``token_type_ids`` nothing uses the
segments' biases and embeddings. ``DistributedDataParallel`` then raises at the next step, in
Hugging Face's code too. Everywhere else their gradient stays None, as there, so that weight decay
leaves them alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import is_available as has_processes


def waits_for_every_gradient() -> bool:
    """Whether this is the forward pass of a DDP model that does not look for unused parameters."""
    if not has_processes() or not torch.is_grad_enabled():
        return False
    from torch.nn.parallel import DistributedDataParallel

    outer: Any = DistributedDataParallel._get_active_ddp_module()
    return outer is not None and not (outer.find_unused_parameters or outer.static_graph)


def with_zero_gradients(output: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """The same output; its backward pass gives each unused parameter a gradient of zeros."""
    result: Tensor = _ZeroGradients.apply(output, *unused)
    return result


class _ZeroGradients(torch.autograd.Function):
    """Not ``output + 0 * unused.sum()``, which is NaN if a parameter holds an infinity."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = unused
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *map(torch.zeros_like, ctx.unused))
