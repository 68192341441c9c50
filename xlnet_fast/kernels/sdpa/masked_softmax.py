"""Attention probabilities in plain PyTorch, one batch element at a time so that the fp32 copy of
the scores stays small. Letters as in :mod:`xlnet_fast.kernels.sdpa.rel_attention`, P rows of r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.kernels.sdpa.common import skewed_view, softmax_backward_
from xlnet_fast.masks import HIDDEN_SCORE, row_positions
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.philox import keep_mask


def masked_softmax_forward(inputs: SoftmaxInputs, out: Tensor) -> None:
    """Fill ``out`` (B, N, I, J), one batch element at a time; see ``ops.masked_softmax``."""
    for b in range(inputs.scores.shape[0]):
        probabilities = _probabilities(b, inputs)
        factor = _dropout_factor(b, inputs, probabilities.dtype)
        if factor is not None:
            probabilities *= factor
        out[b : b + 1] = probabilities


def masked_softmax_backward(
    inputs: SoftmaxInputs, out: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Fill ``grads``, shaped like scores, position_scores and segment_scores (empty where None)."""
    d_scores, d_position, d_segment = grads
    d_position.zero_()
    for b in range(inputs.scores.shape[0]):
        one = slice(b, b + 1)
        probabilities = _probabilities(b, inputs)  # in fp32, which ``out`` may not be
        total = grad_out[one].to(probabilities.dtype, copy=True)
        factor = _dropout_factor(b, inputs, total.dtype)
        if factor is not None:
            total *= factor
        softmax_backward_(total, probabilities)
        total *= inputs.scale
        d_scores[one] = total
        if inputs.position_scores is not None:
            element = None if inputs.positions is None else inputs.positions[one]
            _shift_back(total.to(d_position.dtype), d_position[one], element, inputs.memory_length)
        differ = _segments_differ(b, inputs)
        if differ is not None:
            d_segment[one] = (total * differ).sum(-1)


def _probabilities(b: int, inputs: SoftmaxInputs) -> Tensor:
    """Of batch element b before dropout, (1, N, I, J) in fp32 (float64 of float64)."""
    scores, positions, memory_length = inputs.scores, inputs.positions, inputs.memory_length
    queries, keys = scores.shape[2:]
    one = slice(b, b + 1)
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    rows = row_positions(positions, queries, scores.device)
    rows = rows if positions is None else rows[one]
    total = scores[one].to(wide, copy=True)
    if inputs.position_scores is not None:
        element = None if positions is None else positions[one]
        total += _shift(inputs.position_scores[one], element, keys, memory_length)
    differ = _segments_differ(b, inputs)
    if inputs.segment_scores is not None and differ is not None:
        total += inputs.segment_scores[one, :, :, None] * differ
    total *= inputs.scale
    hidden = inputs.mask.narrow_batch(b, 1).hidden(rows, keys, memory_length)
    if hidden is not None:
        total += torch.where(hidden, HIDDEN_SCORE, 0.0).to(wide)[:, None]
    return torch.softmax(total, -1, out=total)


def _segments_differ(b: int, inputs: SoftmaxInputs) -> Tensor | None:
    """Where row and key of batch element b have different segments, (1, 1, I, J), or None."""
    segments_q, segments_k = inputs.segments_q, inputs.segments_k
    if inputs.segment_scores is None or segments_q is None or segments_k is None:
        return None
    return segments_q[b : b + 1, None, :, None] != segments_k[b : b + 1, None, None, :]


def _dropout_factor(b: int, inputs: SoftmaxInputs, dtype: torch.dtype) -> Tensor | None:
    """0 or 1 / (1 - p) for every probability of batch element b; None without dropout."""
    if inputs.dropout_p == 0.0 or inputs.seed is None:
        return None
    batch, heads, queries, keys = inputs.scores.shape
    keep = keep_mask(
        inputs.seed, inputs.dropout_p, batch, heads, (0, queries), keys,
        device=inputs.scores.device, batch_range=(b, b + 1),
    )  # fmt: skip
    return keep.to(dtype).mul_(1.0 / (1.0 - inputs.dropout_p))


def _shift(table: Tensor, positions: Tensor | None, keys: int, memory_length: int) -> Tensor:
    """Position scores (1, N, I, P) read at p = j - pos_i + L, zero where there is no such p."""
    width = table.shape[3]
    if positions is not None:
        index, inside = _shift_index(positions, keys, memory_length, width)
        return table.gather(-1, index.expand(1, table.shape[1], -1, -1)).masked_fill_(~inside, 0.0)
    needed = keys + keys - memory_length
    table = F.pad(table, (0, needed - width)) if width < needed else table
    table = table if table.stride(-1) == 1 else table.contiguous()
    return skewed_view(table.narrow(-1, 1, needed - 1), keys)


def _shift_back(
    grad: Tensor, d_table: Tensor, positions: Tensor | None, memory_length: int
) -> None:
    """Add ``grad`` (1, N, I, J), the gradient of what :func:`_shift` read, to ``d_table``."""
    keys, width = grad.shape[3], d_table.shape[3]
    if positions is not None:
        index, inside = _shift_index(positions, keys, memory_length, width)
        d_table.scatter_add_(-1, index.expand(1, grad.shape[1], -1, -1), grad * inside)
        return
    needed = keys + keys - memory_length
    whole = grad.new_zeros(*grad.shape[:3], max(width, needed))
    skewed_view(whole.narrow(-1, 1, needed - 1), keys).copy_(grad)
    d_table += whole[..., :width]


def _shift_index(
    positions: Tensor, keys: int, memory_length: int, width: int
) -> tuple[Tensor, Tensor]:
    """p = j - pos_i + L clamped into the table, (b, 1, I, J), and whether it was inside."""
    key = torch.arange(keys, device=positions.device)
    index = (key - positions.to(torch.int64)[:, :, None] + (keys - memory_length))[:, None]
    return index.clamp(0, width - 1), (index >= 0) & (index < width)
