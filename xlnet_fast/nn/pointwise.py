"""Convolutions over one frame, which are linear layers, without turning the channels round."""

from __future__ import annotations

from torch import Tensor, nn

from xlnet_fast.nn.bare import is_bare
from xlnet_fast.ops.linear import linear


def pointwise(convolution: nn.Module, x: Tensor) -> Tensor:
    """``convolution`` of width 1 on frames (B, T, C) in place of (B, C, T); (B, T, C')."""
    if _is_pointwise(convolution):
        weight: Tensor = convolution.weight  # type: ignore[assignment]
        return linear(x, weight.squeeze(-1), convolution.bias)  # type: ignore[arg-type]
    output: Tensor = convolution(x.transpose(1, 2))
    return output.transpose(1, 2)


def _is_pointwise(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv1d
        and is_bare(module)
        and module.kernel_size == (1,)
        and module.stride == (1,)
        and module.groups == 1
        and module.padding in ((0,), "valid")
    )
