"""Attention over cached keys by the C++ kernel: from tensors to addresses and strides.

The kernel is in ``csrc/cpu/cached_attention_{scores,rows}.h``; it reads keys, values and table once
and gives the same bits on any number of threads. A model calls it once a layer and token, so a call
costs few microseconds beside it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from xlnet_fast import _extension
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""q, keys, values, table, r_w_bias, r_r_bias."""

_PLAIN = (Tensor, nn.Parameter)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # enum Dtype of csrc/params.h


def is_there() -> bool:
    """Whether there is a kernel here, as ``cpu.why_unavailable`` says in words but in less time."""
    return _extension.load() is not None and _has_vectors()


@functools.cache
def _has_vectors() -> bool:
    return bool(_extension.require().attention_isa_available())


def takes(operands: Operands, rows_at: object, keys_at: object, hidden: object) -> bool:
    """Whether these are what the kernel reads: plain, on the CPU, of fitting sizes, rows dense.

    Arguments as ``ops.cached_attention``; those after ``operands`` may be anything. Whether the
    table has all rows is not looked at: where it has not, the kernel takes the nearest.
    """
    q, keys, values, table, r_w_bias, r_r_bias = operands
    if type(q) not in _PLAIN or (dtype := q.dtype) not in _DTYPES:
        return False
    for x in operands:
        if type(x) not in _PLAIN or x.dtype is not dtype or not x.is_cpu or x.is_neg():
            return False
        if x.dim() < 2 or x.stride(-1) != 1:
            return False
    if q.dim() != 4 or keys.dim() != 4 or table.dim() != 3:
        return False
    rows, batch, heads, dim = q.shape
    count, length = keys.shape[2], table.shape[1]
    if not (
        keys.shape == values.shape == (batch, heads, count, dim)
        and table.shape == (heads, length, dim)
        and r_w_bias.shape == r_r_bias.shape == (heads, dim)
        and 0 not in (rows, batch, heads, dim, count, length)
    ):
        return False
    if type(rows_at) is not int and not _is_list(rows_at, rows):
        return False
    if keys_at is not None and not _is_list(keys_at, count):
        return False
    if hidden is None:
        return True
    return (
        type(hidden) is Tensor
        and hidden.is_cpu
        and hidden.dtype is torch.bool
        and hidden.dim() == 3
        and hidden.shape[0] in (1, batch)
        and hidden.shape[1] in (1, rows)
        and hidden.shape[2] == count
        and (hidden.stride(2) == 1 or count == 1)
    )


def _is_list(x: object, size: int) -> bool:
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype is torch.int64
        and x.shape == (size,)
        and x.is_contiguous()
    )


def cached_attention(
    operands: Operands,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None,
    hidden: Tensor | None,
    scale: float,
) -> Tensor:
    """``ops.cached_attention`` of operands that :func:`takes` takes."""
    q, keys, values, table, r_w_bias, r_r_bias = operands
    shape = q.shape
    out = torch.empty_like(q) if q.is_contiguous() else q.new_empty(shape)
    positions = 0
    if isinstance(rows_at, Tensor):
        positions, rows_at = rows_at.data_ptr(), 0
    hidden_batch = hidden_row = 0
    if hidden is not None:
        hidden_batch = hidden.stride(0) if hidden.shape[0] > 1 else 0
        hidden_row = hidden.stride(1) if hidden.shape[1] > 1 else 0
    _extension.require().cached_attention(
        _DTYPES[q.dtype],
        (*shape, keys.shape[2], table.shape[1]),
        q.data_ptr(), q.stride(),
        keys.data_ptr(), keys.stride(),
        values.data_ptr(), values.stride(),
        table.data_ptr(), table.stride(),
        r_w_bias.data_ptr(), r_w_bias.stride(0),
        r_r_bias.data_ptr(), r_r_bias.stride(0),
        out.data_ptr(),
        far, rows_at, positions,
        0 if keys_at is None else keys_at.data_ptr(),
        0 if hidden is None else hidden.data_ptr(), hidden_batch, hidden_row,
        scale, torch.get_num_threads(), instruction_set(),
    )  # fmt: skip
    return out
