"""What the ops of this backend share: the skewed view and the softmax's backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


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

    D from P and dP, not from dO . O: only so do the rounding errors of a row cancel in its sum, and
    the gradients of r_s_bias and seg_embed are such sums.
    """
    return torch._softmax_backward_data(grad, probabilities, -1, grad.dtype, grad_input=grad)
