"""What the layers of one forward pass settle once: do operands fit, which backend runs them.

A layer asks what the one before it asked. The answers, and what a kernel is told of masks and
segments, take longer than a small layer's arithmetic: those of the first layer are kept, under all
that decided them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import transforms
from xlnet_fast.kernels.cpu.rel_attention import PreparedCall
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops._contracts._registry import Differentiable
from xlnet_fast.ops._contracts.rel_attention import call_of, seeds_of
from xlnet_fast.ops._validation import check_positions

Operands = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Call:
    """An attention call that was checked, with its backend: runs on any operands like the first.

    Attributes:
        op: what is called.
        inputs: its arguments between the operands and the seed. options: those after the seed.
    """

    op: Differentiable
    inputs: tuple[Any, ...]
    options: tuple[Any, ...]

    def __call__(self, operands: Operands, seed: Tensor | None) -> tuple[Tensor, ...]:
        """One output for each stream."""
        return tuple(self.op.op(*self.arguments(operands, seed))[: self.op.queries])

    def arguments(self, operands: Operands, seed: Tensor | None) -> tuple[Any, ...]:
        """All that the op takes."""
        return (*operands, *self.inputs, seed, *self.options)

    def directly(self, operands: Operands, seed: Tensor | None) -> Call:
        """The same past PyTorch's dispatcher, if it may be, for an eager call nobody looks at.

        With an op's many arguments the dispatcher spends longer than a small layer computes.
        """
        if not transforms.are_plain(operands):
            return self
        records = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in operands
        )
        prepared, count = None, self.op.queries
        if self.options[-1] == "cpu":
            queries: Any = operands[:count]
            keys, streams, _ = call_of(queries, self.arguments(operands, seed)[count:])
            check_positions(streams[-1].positions, keys.current)
            if keys.count and all(q.numel() for q in queries):
                prepared = PreparedCall(keys, streams)
        return _Direct(self.op, self.inputs, self.options, records, prepared)


@dataclass(frozen=True)
class _Direct(Call):
    """``records``: whether it has a gradient; ``prepared``: the CPU's kernel, if that runs it."""

    records: bool
    prepared: PreparedCall | None

    def __call__(self, operands: Operands, seed: Tensor | None) -> tuple[Tensor, ...]:
        if self.records:
            outs: tuple[Tensor, ...] = _Recorded.apply(self, seed, *operands)
            return outs
        return self.results(operands, seed)[: self.op.queries]

    def results(self, operands: Operands, seed: Tensor | None) -> tuple[Tensor, ...]:
        """Those of the op; its statistics are left out where the kernel is prepared."""
        if self.prepared is None:
            return tuple(self.op.forward(*self.arguments(operands, seed)))
        queries: Any = operands[: self.op.queries]
        outs = tuple(map(torch.empty_like, queries))
        seeds = seeds_of(seed, self.op.queries)
        self.prepared.forward(queries, operands[self.op.queries :], seeds, outs)
        return outs

    def gradients(
        self,
        wanted: list[bool],
        grad_outs: Sequence[Tensor | None],
        results: Sequence[Tensor],
        operands: Operands,
        seed: Tensor | None,
    ) -> list[Tensor | None]:
        """As :meth:`Differentiable.gradients`."""
        count = self.op.queries
        looked_at = torch.is_grad_enabled() or not transforms.nobody_looks_on()
        if self.prepared is None or looked_at or not transforms.are_plain(grad_outs):
            missing = [] if self.prepared is None else [results[0].new_empty(0).float()] * count
            arguments = self.arguments(operands, seed)
            return self.op.gradients(wanted, grad_outs, [*results, *missing], arguments)
        queries: Any = operands[:count]
        present = [
            torch.zeros_like(out) if grad is None else grad
            for out, grad in zip(results, grad_outs, strict=True)
        ]
        grads = [
            torch.empty_like(x) if x is not None and want else None
            for x, want in zip(operands, wanted, strict=True)
        ]
        seeds = seeds_of(seed, count)
        self.prepared.backward(queries, operands[count:], seeds, present, grads)
        return grads


class _Recorded(torch.autograd.Function):
    """A direct call with a gradient."""

    @staticmethod
    def forward(
        ctx: Any, call: _Direct, seed: Tensor | None, *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        results = call.results(operands, seed)
        ctx.call, ctx.counts = call, (len(results), len(results) + len(operands))
        ctx.set_materialize_grads(False)
        # The inputs too, which the call has: PyTorch tells where one was changed in between.
        ctx.save_for_backward(seed, *results, *operands, *call.inputs)
        return results[: call.op.queries]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        seed, *saved = ctx.saved_tensors
        count, end = ctx.counts
        results, operands = saved[:count], tuple(saved[count:end])
        wanted = list(ctx.needs_input_grad[2:])
        return None, None, *ctx.call.gradients(wanted, grads, results, operands, seed)


class Settled:
    """The calls of one forward pass that were checked.

    Mask, segments and positions must stay what they are for as long as it is used.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}
        self._named: list[Any] = []  # kept alive, so that nothing else takes their place

    def find(self, key: Hashable | None) -> Call | None:
        """What was kept under a key."""
        return None if key is None else self._calls.get(key)

    def keep(self, key: Hashable, call: Call, objects: Sequence[Any]) -> None:
        """Keep a call under its key, which names ``objects``."""
        self._calls[key] = call
        self._named.extend(objects)


def key_of(
    op: str,
    operands: Operands,
    objects: Sequence[Tensor | AttentionMask | None],
    *numbers: Hashable,
) -> Hashable | None:
    """All that decides whether a call is right and who runs it; None where it is not to be kept.

    Args:
        operands: of whose values nothing depends. objects: the others, which are to stay as they
            are. numbers: and names.
    """
    q = operands[0]
    if q is None or transforms.is_xla(q.device):  # whose tensors lie nowhere
        return None
    if not transforms.nobody_looks_on():
        return None
    return (
        op, torch.is_grad_enabled(), numbers, *map(_identity, objects), *map(_properties, operands)
    )  # fmt: skip


def _identity(x: Tensor | AttentionMask | None) -> Hashable:
    """Layers cut the same piece out of a tensor, each anew: it lies at the same place."""
    if isinstance(x, Tensor):
        return (x.data_ptr(), x.shape, x.stride(), x.dtype)
    return id(x)


def _properties(x: Tensor | None) -> Hashable:
    if x is None:
        return None
    properties = (type(x), x.shape, x.dtype, x.device, x.layout, x.requires_grad)
    if x.is_cuda:  # whose kernels read pieces of 16 bytes
        return (*properties, x.stride(), x.data_ptr() % 16)
    return properties
