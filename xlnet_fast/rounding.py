"""What one rounding of every step does to the result of a computation: random rounding.

Where a result is small because large terms cancel, its error is that of the terms, and no multiple
of its own size says how large that may be. So the computation is done in float64, where the result
of each product, normalisation and softmax is moved by up to one rounding of the working dtype,
at random: Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997; Verrou and CADNA
are tools for it). How far the end result then moves is what any code in that dtype may be off by,
whatever the order of its sums and whatever its luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DRAWS = 2
"""How often the computation is done: of one draw, a number of little freedom is small by luck."""

_aten = torch.ops.aten
_ROUNDED = {
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.baddbmm,
    _aten.embedding,
    _aten.native_layer_norm,
    _aten.native_layer_norm_backward,
    _aten.gelu,
    _aten.gelu_backward,
    _aten.relu,
    _aten.silu,
    _aten.silu_backward,
    _aten.tanh,
    _aten.tanh_backward,
    _aten._softmax,
    _aten._log_softmax,
}
"""No sums, differences and comparisons: of masks these are exact, and decide what is seen."""


class RandomRounding(TorchDispatchMode):
    """Within it, float64 results on the CPU are moved by up to one rounding of ``dtype``.

    That is half a unit in a dtype narrower than float32, whose products are summed in float32 and
    rounded once; a whole unit in float32 itself, where the sums are rounded too.

    The gradient of a softmax is a difference of two terms, which are moved before they cancel,
    by float32's unit at most, as a softmax and its gradient are computed in that or wider.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self._unit_within = torch.finfo(torch.float32).eps
        narrow = torch.finfo(dtype).eps > self._unit_within
        self._unit = torch.finfo(dtype).eps / 2 if narrow else self._unit_within
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The op's result, moved."""
        result = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is _aten._softmax_backward_data:
            grad, probability, dim = args[:3]
            result = result + self._of_difference(
                probability * grad, probability, (probability * grad).sum(dim, keepdim=True)
            )
        elif op is _aten._log_softmax_backward_data:
            grad, log_probability, dim = args[:3]
            result = result + self._of_difference(
                grad, log_probability.exp(), grad.sum(dim, keepdim=True)
            )
        elif op not in _ROUNDED:
            return result
        return tree_map(self._moved, result)

    def _of_difference(self, minuend: Tensor, probability: Tensor, row_sum: Tensor) -> Tensor:
        """What rounding of both terms adds to ``minuend - probability * row_sum``."""
        moved = minuend * self._noise(minuend) - probability * (row_sum * self._noise(row_sum))
        return moved * self._unit_within

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        return value * (1 + self._unit * self._noise(value))

    def _noise(self, like: Tensor) -> Tensor:
        """Uniform in (-1, 1), of the shape of ``like``."""
        return torch.rand(like.shape, generator=self._generator, dtype=like.dtype) * 2 - 1


def effect_of_rounding(
    compute: Callable[[], Mapping[str, Tensor]],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype,
    draws: int = DRAWS,
) -> dict[str, float]:
    """How far one rounding of every step moves each result: the largest change of any element.

    Args:
        compute: a computation in float64 on the CPU, the same whenever it is called.
        exact: what it gives without rounding, float64.
        dtype: whose unit of rounding counts.
        draws: how often it is tried, each with a seed of its own.
    """
    effect = dict.fromkeys(exact, 0.0)
    for seed in range(draws):
        with RandomRounding(dtype, seed):
            moved = compute()
        for name, value in exact.items():
            if value.numel():
                effect[name] = max(effect[name], float((moved[name] - value).abs().max()))
    return effect
