"""The tolerance rule for outputs and gradients of attention: what it allows, measured once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.tolerance import assert_within, error_and_bound

F64 = torch.float64
Attention = Callable[..., "Tensor | tuple[Tensor, ...]"]


def gradient_bounds(
    gradients_of: Callable[[torch.dtype, Tensor], dict[str, Tensor]],
    dtype: torch.dtype,
    d_out: Tensor,
    draws: int = 7,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The exact gradients of ``d_out``, and what the tolerance rule allows each.

    HF's error in a small tensor is the maximum of a few draws: it is taken over several gradients
    of the output, the given one with its rows and columns moved round.
    """
    right: dict[str, Tensor] = {}
    bounds: dict[str, float] = {}
    for shift in range(draws):
        moved = d_out.roll((shift, shift), dims=(1, 3))
        eager, exact = gradients_of(dtype, moved), gradients_of(F64, moved)
        right = right or exact
        for operand in eager:
            _, bound = error_and_bound(eager[operand], eager[operand], exact[operand])
            bounds[operand] = max(bounds.get(operand, 0.0), bound)
    return right, bounds


class Graph:
    """One forward pass, whose gradients can be asked for again and again."""

    def __init__(self, attention: Attention, operands: dict[str, Tensor], **options: Any) -> None:
        self._leaves = {name: x.detach().requires_grad_() for name, x in operands.items()}
        out = attention(**self._leaves, **options)
        self.outs = out if isinstance(out, tuple) else (out,)

    def d_out(self) -> Tensor:
        """A fixed random gradient of the outputs, side by side along the rows."""
        b, _, n, d = self.outs[0].shape
        shape = (b, sum(out.shape[1] for out in self.outs), n, d)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=F64)
        return values.to(self.outs[0].dtype)

    def gradients(self, d_out: Tensor) -> dict[str, Tensor]:
        """Of every operand; ``d_out`` of any floating dtype."""
        parts = d_out.to(self.outs[0].dtype).split([out.shape[1] for out in self.outs], 1)
        grads = torch.autograd.grad(self.outs, list(self._leaves.values()), parts,
                                    retain_graph=True)  # fmt: skip
        return dict(zip(self._leaves, grads, strict=True))


class Yardstick:
    """What the tolerance rule allows on one problem in one dtype.

    In fp32 the bound of a gradient is the largest of several draws (``gradient_bounds``): there the
    error of many tensors is that of one unlucky element, ours as well as HF's. Outputs, and
    everything in half precision, are held to the one draw.
    """

    def __init__(
        self, eager: Attention, exact: Attention, operands: dict[str, Tensor], **options: Any
    ) -> None:
        dtype = next(iter(operands.values())).dtype
        wide = {name: x.to(F64) for name, x in operands.items()}
        graphs = {dtype: Graph(eager, operands, **options), F64: Graph(exact, wide, **options)}
        d_out = graphs[dtype].d_out()
        draws = 7 if dtype == torch.float32 else 1
        self._outs = [
            (mine.detach(), right.detach())
            for mine, right in zip(graphs[dtype].outs, graphs[F64].outs, strict=True)
        ]
        self._exact, self._bounds = gradient_bounds(
            lambda d, y: graphs[d].gradients(y), dtype, d_out, draws
        )

    def check(self, actual: Graph) -> None:
        """Hold every output and gradient to the rule."""
        for number, (out, (eager, exact)) in enumerate(zip(actual.outs, self._outs, strict=True)):
            assert_within(out, eager, exact, f"out {number}")
        for name, grad in actual.gradients(actual.d_out()).items():
            error, _ = error_and_bound(grad, grad, self._exact[name])
            bound = self._bounds[name]
            assert error <= bound, f"d {name}: error {error:.3e}, bound {bound:.3e}"
