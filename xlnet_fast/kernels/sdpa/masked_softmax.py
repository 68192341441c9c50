"""Attention probabilities in plain PyTorch: on a CPU one batch element at a time, so that the fp32
copy of the scores stays small; on a GPU as many as memory allows, for few launches. Letters as in
:mod:`xlnet_fast.kernels.sdpa.rel_attention`, P rows of r, b batch elements of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.kernels.sdpa import budget
from xlnet_fast.kernels.sdpa.common import skewed_view, softmax_backward_
from xlnet_fast.masks import HIDDEN_SCORE, row_positions
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.philox import keep_mask


def masked_softmax_forward(inputs: SoftmaxInputs, out: Tensor) -> None:
    """Fill ``out`` (B, N, I, J); see ``ops.masked_softmax``."""
    for part in _chunks(inputs, budget.FORWARD_TENSORS):
        probabilities = _probabilities(part, inputs)
        factor = _dropout_factor(part, inputs, probabilities.dtype)
        if factor is not None:
            probabilities *= factor
        out[part] = probabilities


def masked_softmax_backward(
    inputs: SoftmaxInputs, out: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Fill ``grads``, shaped like scores, position_scores and segment_scores (empty where None)."""
    d_scores, d_position, d_segment = grads
    d_position.zero_()
    for part in _chunks(inputs, budget.BACKWARD_TENSORS):
        probabilities = _probabilities(part, inputs)  # in fp32, which ``out`` may not be
        total = torch.empty_like(probabilities, memory_format=torch.contiguous_format)
        total.copy_(grad_out[part])
        factor = _dropout_factor(part, inputs, total.dtype)
        if factor is not None:
            total *= factor
        softmax_backward_(total, probabilities)
        total *= inputs.scale
        d_scores[part] = total
        if inputs.position_scores is not None:
            element = None if inputs.positions is None else inputs.positions[part]
            _shift_back(total.to(d_position.dtype), d_position[part], element, inputs.memory_length)
        differ = _segments_differ(part, inputs)
        if differ is not None:
            d_segment[part] = (total * differ).sum(-1)


def _chunks(inputs: SoftmaxInputs, tensors: int) -> Iterator[slice]:
    """Batch elements at a time, for a pass that holds so many tensors as large as their scores."""
    batch, *sizes = inputs.scores.shape
    step, device = 1, inputs.scores.device
    if device.type != "cpu":
        bytes_per_score = tensors * max(4, inputs.scores.element_size())
        step = max(1, budget.scores(device, bytes_per_score) // max(1, math.prod(sizes)))
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def _probabilities(part: slice, inputs: SoftmaxInputs) -> Tensor:
    """Of some batch elements before dropout, (b, N, I, J) in fp32 (float64 of float64)."""
    scores, positions, memory_length = inputs.scores, inputs.positions, inputs.memory_length
    queries, keys = scores.shape[2:]
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    rows = row_positions(positions, queries, scores.device)
    rows = rows if positions is None else rows[part]
    total = scores[part].to(wide, copy=True)
    if inputs.position_scores is not None:
        element = None if positions is None else positions[part]
        total += _shift(inputs.position_scores[part], element, keys, memory_length)
    differ = _segments_differ(part, inputs)
    if inputs.segment_scores is not None and differ is not None:
        total += inputs.segment_scores[part, :, :, None] * differ
    total *= inputs.scale
    mask = inputs.mask.narrow_batch(part.start, part.stop - part.start)
    hidden = mask.hidden(rows, keys, memory_length)
    if hidden is not None:
        total += torch.where(hidden, HIDDEN_SCORE, 0.0).to(wide)[:, None]
    return torch.softmax(total, -1, out=total)


def _segments_differ(part: slice, inputs: SoftmaxInputs) -> Tensor | None:
    """Where row and key of batch elements have different segments, (b, 1, I, J), or None."""
    segments_q, segments_k = inputs.segments_q, inputs.segments_k
    if inputs.segment_scores is None or segments_q is None or segments_k is None:
        return None
    return segments_q[part, None, :, None] != segments_k[part, None, None, :]


def _dropout_factor(part: slice, inputs: SoftmaxInputs, dtype: torch.dtype) -> Tensor | None:
    """0 or 1 / (1 - p) for every probability of batch elements; None without dropout."""
    if inputs.dropout_p == 0.0 or inputs.seed is None:
        return None
    batch, heads, queries, keys = inputs.scores.shape
    keep = keep_mask(
        inputs.seed, inputs.dropout_p, batch, heads, (0, queries), keys,
        device=inputs.scores.device, batch_range=(part.start, part.stop),
    )  # fmt: skip
    return keep.to(dtype).mul_(1.0 / (1.0 - inputs.dropout_p))


def _shift(table: Tensor, positions: Tensor | None, keys: int, memory_length: int) -> Tensor:
    """Position scores (b, N, I, P) read at p = j - pos_i + L, zero where there is no such p."""
    width = table.shape[3]
    if positions is not None:
        index, inside = _shift_index(positions, keys, memory_length, width)
        return table.gather(-1, index.expand(-1, table.shape[1], -1, -1)).masked_fill_(~inside, 0.0)
    needed = keys + keys - memory_length
    table = F.pad(table, (0, needed - width)) if width < needed else table
    table = table if table.stride(-1) == 1 else table.contiguous()
    return skewed_view(table.narrow(-1, 1, needed - 1), keys)


def _shift_back(
    grad: Tensor, d_table: Tensor, positions: Tensor | None, memory_length: int
) -> None:
    """Add ``grad`` (b, N, I, J), the gradient of what :func:`_shift` read, to ``d_table``."""
    keys, width = grad.shape[3], d_table.shape[3]
    if positions is not None:
        index, inside = _shift_index(positions, keys, memory_length, width)
        d_table.scatter_add_(-1, index.expand(-1, grad.shape[1], -1, -1), grad * inside)
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
