"""Relative attention of a few query rows over cached keys and values, as text generation asks it.

Beside ``rel_attention`` this has no gradient, no segments and no dropout. Its keys may be a slice
of slots, and its table of positions is one that was projected before and reaches farther than
needed: nothing is copied or projected again for a call.

On a CPU one C++ kernel reads keys, values and table once; elsewhere, and wherever somebody looks
on (``transforms.nobody_looks_on``) or asks for gradients, plain PyTorch does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu import cached_attention as cpu_kernel
from xlnet_fast.masks import HIDDEN_SCORE
from xlnet_fast.ops._validation import (
    check_device,
    check_float,
    check_same,
    check_shape,
    check_tensor,
)
from xlnet_fast.transforms import can_look, nobody_looks_on


def cached_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None = None,
    hidden: Tensor | None = None,
    scale: float,
) -> Tensor:
    """``softmax_j(scale ((q_x + r_w_bias) k_j + (q_x + r_r_bias) table[far - distance])) v_j``.

    The distance of row x and key j is ``position of x - position of j`` (Transformer-XL section
    3.3). Statistics in fp32, for float64 in float64. Where gradients are asked for, plain PyTorch
    answers, which has them.

    Args:
        q: (R, B, N, D) projected query rows, any floating dtype, which all tensors share.
        keys, values: (B, N, J, D), any strides: slices of slots cost no copy. J >= 1. The kernel
            is fastest where rows are dense, as in slots (B, N, capacity, D).
        table: (N, P, D) projected rows of positions; row p is that of the distance ``far - p``.
        r_w_bias, r_r_bias: (N, D).
        far: distance of row 0 of the table.
        rows_at: position of row 0, row x at ``rows_at + x``; or (R,) int64, those of all rows.
        keys_at: (J,) int64 positions of the keys; None: key j is at j.
        hidden: bool, (1 or B, 1 or R, J): True where the row must not see the key. What a key
            holds that no row of its batch element sees reaches nothing, be it NaN.
        scale: of the scores.

    Returns:
        (R, B, N, D), contiguous. A row that sees no key is the mean of all J values, what is not
        finite in keys that no row sees counted as 0.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected. A table that
            lacks the row of a pair that is seen is found on the CPU; on another device, where
            positions in tensors are not looked at, the nearest row is taken.
    """
    operands = (q, keys, values, table, r_w_bias, r_r_bias)
    if _has_kernel(operands, far, rows_at, keys_at, hidden):
        if _regular_first(q, keys, table, far, rows_at, keys_at, hidden) is None:
            _check_index(_index(q, keys, far, rows_at, keys_at), table, hidden)
        return cpu_kernel.cached_attention(operands, far, rows_at, keys_at, hidden, scale)
    _check(*operands, far, rows_at, keys_at, hidden)
    return _in_pytorch(*operands, far, rows_at, keys_at, hidden, scale)


def _has_kernel(
    operands: cpu_kernel.Operands,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None,
    hidden: Tensor | None,
) -> bool:
    """Whether the C++ kernel answers: nobody asks for more, and it takes the operands.

    What it takes would pass :func:`_check`.
    """
    return (
        nobody_looks_on()
        and isinstance(far, int)
        and cpu_kernel.takes(operands, rows_at, keys_at, hidden)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in operands))
        and not torch.is_autocast_enabled("cpu")
        and cpu_kernel.is_there()
    )


def _in_pytorch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None,
    hidden: Tensor | None,
    scale: float,
) -> Tensor:
    """:func:`cached_attention` of operands that were checked, on any device and in any dtype."""
    rows, batch, heads, dim = q.shape
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    content = (q + r_w_bias).permute(1, 2, 0, 3)  # (B, N, R, D)
    scores = torch.matmul(content, keys.transpose(2, 3)).to(wide)
    # One product for the whole batch, which shares the table.
    position = (q + r_r_bias).permute(2, 1, 0, 3).reshape(heads, batch * rows, dim)
    if (first := _regular_first(q, keys, table, far, rows_at, keys_at, hidden)) is not None:
        width = keys.shape[2] + rows - 1
        window = table[:, first : first + width]
        products = torch.bmm(position, window.transpose(1, 2))  # (N, B R, W)
        shifted = _shifted(products.view(heads, batch, rows, width))
    else:
        index = _index(q, keys, far, rows_at, keys_at)  # (R, J)
        _check_index(index, table, hidden)
        products = torch.bmm(position, table.transpose(1, 2)).view(heads, batch, rows, -1)
        index = index.clamp(0, table.shape[1] - 1).expand(heads, batch, -1, -1)
        shifted = products.gather(3, index)
    scores = (scores + shifted.transpose(0, 1).to(wide)) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], HIDDEN_SCORE)
        unseen = hidden.all(1)[:, None, :, None]
        values = values.masked_fill(unseen & ~values.isfinite(), 0.0)
    probabilities = scores.softmax(-1).to(q.dtype)
    return torch.matmul(probabilities, values).permute(2, 0, 1, 3).contiguous()


def _regular_first(
    q: Tensor,
    keys: Tensor,
    table: Tensor,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None,
    hidden: Tensor | None,
) -> int | None:
    """The table's row of the last query row and key 0, from which on all pairs' rows follow.

    None where positions are irregular, or pairs without a row may be hidden.
    """
    if keys_at is not None or isinstance(rows_at, Tensor):
        return None
    first = far - (rows_at + q.shape[0] - 1)
    last = far - rows_at + keys.shape[2] - 1
    if first >= 0 and last < table.shape[1]:
        return first
    if hidden is None:
        raise ArgumentError(_lacking(first, last, table))
    return None


def _lacking(first: int, last: int, table: Tensor) -> str:
    return (
        f"rows {first} to {last} of the table would be read, which has {table.shape[1]}: expected "
        "0 <= far - (position of row - position of key) < P for every pair that is seen"
    )


def _shifted(products: Tensor) -> Tensor:
    """(N, B, R, J) of (N, B, R, W = J + R - 1): row x begins at column R - 1 - x."""
    rows, width = products.shape[2:]
    if rows <= 1:
        return products
    flat = products.flatten(2)[:, :, rows - 1 : rows - 1 + rows * (width - 1)]
    return flat.unflatten(2, (rows, width - 1))[..., : width - rows + 1]


def _index(
    q: Tensor, keys: Tensor, far: int, rows_at: int | Tensor, keys_at: Tensor | None
) -> Tensor:
    """(R, J) row of the table of every pair."""
    if not isinstance(rows_at, Tensor):
        rows_at = torch.arange(rows_at, rows_at + q.shape[0], device=q.device)
    if keys_at is None:
        keys_at = torch.arange(keys.shape[2], device=q.device)
    return far - rows_at[:, None] + keys_at


def _check_index(index: Tensor, table: Tensor, hidden: Tensor | None) -> None:
    """Where looking costs nothing, every pair that is seen has a row of the table.

    Raises:
        ArgumentError: names the rows that would be read.
    """
    if index.device.type != "cpu" or index.numel() == 0 or not can_look(index):
        return
    first, last = int(index.min()), int(index.max())
    if first >= 0 and last < table.shape[1]:
        return
    if hidden is not None:
        if not can_look(hidden):
            return
        seen = index.expand(hidden.shape[0], -1, -1)[~hidden.expand(-1, *index.shape)]
        if seen.numel() == 0:
            return
        first, last = int(seen.min()), int(seen.max())
    if first < 0 or last >= table.shape[1]:
        raise ArgumentError(_lacking(first, last, table))


def _check(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    far: int,
    rows_at: int | Tensor,
    keys_at: Tensor | None,
    hidden: Tensor | None,
) -> None:
    check_tensor("q", q, 4, "R, B, N, D")
    check_float("q", q)
    check_tensor("keys", keys, 4, "B, N, J, D")
    check_tensor("table", table, 3, "N, P, D")
    rows, batch, heads, dim = q.shape
    count, length = keys.shape[2], table.shape[1]
    check_shape("keys", keys, (batch, heads, count, dim), "B, N, J, D")
    check_shape("values", values, (batch, heads, count, dim), "B, N, J, D")
    check_shape("table", table, (heads, length, dim), "N, P, D")
    for name, bias in (("r_w_bias", r_w_bias), ("r_r_bias", r_r_bias)):
        check_tensor(name, bias, 2, "N, D")
        check_shape(name, bias, (heads, dim), "N, D")
    if 0 in (count, length, dim):
        raise ShapeError(
            f"keys have shape {tuple(keys.shape)} and table {tuple(table.shape)}, expected "
            "(B, N, J, D) and (N, P, D) with J, P and D of at least 1"
        )
    others = {"keys": keys, "values": values, "table": table}
    check_same("q", q, {**others, "r_w_bias": r_w_bias, "r_r_bias": r_r_bias})
    if not isinstance(far, int):
        raise ArgumentError(f"far is {far!r}, expected an int")
    if isinstance(rows_at, Tensor):
        _check_positions("rows_at", rows_at, q, rows, "R")
    elif not isinstance(rows_at, int):
        raise ArgumentError(f"rows_at is {rows_at!r}, expected an int or an int64 tensor (R)")
    if keys_at is not None:
        _check_positions("keys_at", keys_at, q, count, "J")
    if hidden is not None:
        _check_hidden(hidden, q, (batch, rows, count))


def _check_positions(name: str, x: Tensor, q: Tensor, size: int, letter: str) -> None:
    check_shape(name, x, (size,), letter)
    check_device(name, x, "q", q)
    if x.dtype != torch.int64:
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected int64")


def _check_hidden(hidden: Tensor, q: Tensor, shape: tuple[int, int, int]) -> None:
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool:
        kind = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ArgumentError(f"hidden is {kind}, expected a bool tensor")
    batch, rows, count = shape
    allowed = ((1, batch), (1, rows), (count,))
    have = tuple(hidden.shape)
    if len(have) != 3 or any(size not in sizes for size, sizes in zip(have, allowed, strict=True)):
        raise ShapeError(
            f"hidden has shape {have}, expected (1 or B, 1 or R, J) of (B, R, J) = {shape}"
        )
    check_device("hidden", hidden, "q", q)
