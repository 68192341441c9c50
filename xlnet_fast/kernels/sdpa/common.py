"""What the ops of this backend share: packed operands, the skewed view, the softmax's backward."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.masks import clear_padded
from xlnet_fast.operands import Keys


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class PackedKeys:
    """Keys, values and positions of a call, packed for batched GEMMs; shared by its streams."""

    def __init__(self, keys: Keys, key_padding: Tensor | None) -> None:
        self.count, self.current, self.memory_length = keys.count, keys.current, keys.memory_length
        self.r_start = keys.r_start
        self.k = pack_sources(keys.k_memory, keys.k, key_padding)  # (B, N, J, D)
        self.v = pack_sources(keys.v_memory, keys.v, key_padding)  # (B, N, J, D)
        self.r = self._pack_positions(keys.r)  # (G, N, L + J - r_start, D)

    def _pack_positions(self, r: Tensor) -> Tensor:
        """Rows p = r_start to L + J - 1 of r, packed once where all heads share them.

        "uni" lacks those of hidden keys, which are the last: zeros stand for them.
        """
        heads = r.shape[2]
        if r.stride(2) == 0:
            r = r[:, :, :1]
        return self._of_each_head(r).expand(-1, heads, -1, -1)

    def _of_each_head(self, r: Tensor) -> Tensor:
        groups, table, heads, dim = r.shape
        needed = self.current + self.count - self.r_start
        if table >= needed:
            return heads_first(r[:, :needed])
        packed = r.new_zeros(groups, heads, needed, dim)
        packed[:, :, :table] = r.transpose(1, 2)
        return packed


def heads_first(x: Tensor) -> Tensor:
    """(B, S, N, D) to contiguous (B, N, S, D)."""
    return x.transpose(1, 2).contiguous()


def pack_sources(memory: Tensor | None, current: Tensor, key_padding: Tensor | None) -> Tensor:
    """Keys or values of both sources as one contiguous (B, N, J, D), padded rows cleared.

    Args:
        memory: (B, M, N, D), or None. current: (B, J - M, N, D).
        key_padding: (B, J) bool, or None.
    """
    if memory is None:
        return heads_first(_clear_padded(current, key_padding))
    batch, length, heads, dim = current.shape
    apart = memory.shape[1]
    packed = current.new_empty(batch, heads, apart + length, dim)
    for source, keys in ((memory, slice(0, apart)), (current, slice(apart, None))):
        padding = None if key_padding is None else key_padding[:, keys]
        packed[:, :, keys] = _clear_padded(source, padding).transpose(1, 2)
    return packed


def _clear_padded(x: Tensor, key_padding: Tensor | None) -> Tensor:
    """:func:`clear_padded`, at the price of one sum on the CPU when all of x is finite."""
    if key_padding is None:
        return x
    if x.device.type == "cpu" and bool(torch.isfinite(x.sum(dtype=torch.float32))):
        return x
    return clear_padded(x, key_padding)


def accumulate_bmm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, all batches of matrices, total possibly wider than a."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def skewed_view(table: Tensor, keys: int) -> Tensor:
    """View (b, N, rows, W = keys + rows - 1), row i at window column j - i + rows - 1, as (.., J).

    Rows of the view do not overlap: their stride W - 1 is at least ``keys``.
    """
    *lead, rows, width = table.shape
    assert width == keys + rows - 1, (table.shape, keys)
    strides = (*table.stride()[:-2], table.stride(-2) - 1, 1)
    return table.as_strided((*lead, rows, keys), strides, table.storage_offset() + rows - 1)


def softmax_backward_(grad: Tensor, probabilities: Tensor) -> Tensor:
    """grad = P (grad - D), D = sum over the keys of P grad, in place and in one pass.

    ``grad`` is contiguous: on a CPU PyTorch's function fills any other as if it were.
    D from P and dP, not from dO . O: only so do the rounding errors of a row cancel in its sum, and
    the gradients of r_s_bias and seg_embed are such sums.
    """
    assert grad.is_contiguous(), grad.stride()
    return torch._softmax_backward_data(grad, probabilities, -1, grad.dtype, grad_input=grad)
