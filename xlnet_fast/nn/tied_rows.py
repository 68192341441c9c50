"""Rows of a table that is also the weight of a product, as words' vectors are of a language model.

A few rows are looked up, and autograd writes a gradient as large as the table for them, of zeros
but for these rows, only to add it to the product's, which is as large and has no zeros. Here the
product's gradient waits where the rows' will be made, and these are added to it in place.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from xlnet_fast.transforms import are_plain, nobody_looks_on


def weight_of_product(table: Tensor) -> Tensor:
    """The table (rows, width), for a product of which it is the weight."""
    return _Weight.apply(table) if _is_meant(table) else table


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """``F.embedding(ids, table)``: (..., width) of ids (...), int64."""
    if not _is_meant(table):
        return F.embedding(ids, table)
    rows: Tensor = _Rows.apply(table, ids)
    return rows


def _is_meant(table: Tensor) -> bool:
    """Whether both gradients meet at the table itself, and are sums that take time: on a CPU."""
    return (
        torch.is_grad_enabled()
        and type(table) is nn.Parameter
        and table.requires_grad
        and table.is_leaf
        and table.is_cpu
        and nobody_looks_on()
    )


_LOOKUPS: Any = WeakTensorKeyDictionary()
"""By table, weak references to the nodes of its lookups that a backward pass may meet."""


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.table = weakref.ref(table)
        ctx.set_materialize_grads(False)
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        table = ctx.table()
        if grad is None or table is None or not _may_be_added_to(grad):
            return grad
        task = torch._C._current_graph_task_id()
        for reference in _LOOKUPS.get(table, ()):
            lookup = reference()
            if lookup is None or lookup.task == task:  # it was in this pass, or holds one already
                continue
            if torch._C._will_engine_execute_node(lookup):
                lookup.task, lookup.waiting = task, grad
                return None
        return grad


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.shape, ctx.task, ctx.waiting = table.shape, None, None
        ctx.save_for_backward(ids)
        others = [x for x in _LOOKUPS.get(table, ()) if x() is not None]
        _LOOKUPS[table] = [*others, weakref.ref(ctx)]
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        task, waiting = torch._C._current_graph_task_id(), ctx.waiting
        is_of_this = ctx.task == task and waiting is not None
        ctx.task, ctx.waiting = task, None
        if not is_of_this:
            count = ctx.shape[0]
            return torch.ops.aten.embedding_dense_backward(grad, ids, count, -1, False), None
        _add_rows(waiting, ids.reshape(-1), grad.reshape(-1, ctx.shape[1]))
        return waiting, None


def _may_be_added_to(grad: Tensor) -> bool:
    """Whether a gradient is values of its own alone, and is to have no derivatives."""
    own = grad.is_contiguous() or grad.t().is_contiguous()
    return own and are_plain([grad]) and not torch.is_grad_enabled()


def _add_rows(target: Tensor, at: Tensor, rows: Tensor) -> None:
    """Add rows to those of a target; those of one place first to each other, in fp32 at least."""
    if target.dtype not in (torch.float32, torch.float64):
        at, which = at.unique(return_inverse=True)
        total = rows.new_zeros(len(at), rows.shape[1], dtype=torch.float32)
        rows = total.index_add_(0, which, rows.float()).to(target.dtype)
    target.index_add_(0, at, rows)
