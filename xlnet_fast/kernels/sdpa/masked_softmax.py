"""Attention probabilities in plain PyTorch, one batch element at a time so that the fp32 copy of
the scores stays small. Letters as in :mod:`xlnet_fast.kernels.sdpa.rel_attention`, P rows of r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.masks import HIDDEN_SCORE, AttentionMask, row_positions
from xlnet_fast.philox import keep_mask


def masked_softmax_forward(
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    out: Tensor,
) -> None:
    """Fill ``out`` (B, N, I, J), one batch element at a time; see ``ops.masked_softmax``."""
    batch, heads, queries, keys = scores.shape
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    rows = row_positions(positions, queries, scores.device)
    for b in range(batch):
        one = slice(b, b + 1)
        total = scores[one].to(wide, copy=True)
        if position_scores is not None:
            element_rows = rows if positions is None else rows[one]
            index, inside = _shift_index(
                element_rows, keys, memory_length, position_scores.shape[3]
            )
            index = index.expand(1, heads, -1, -1)
            total += position_scores[one].gather(-1, index) * inside
        if segment_scores is not None and segments_q is not None and segments_k is not None:
            differ = segments_q[one, None, :, None] != segments_k[one, None, None, :]
            total += segment_scores[one, :, :, None] * differ
        total *= scale
        hidden = mask.narrow_batch(b, 1).hidden(
            rows if positions is None else rows[one], keys, memory_length
        )
        if hidden is not None:
            total += torch.where(hidden, HIDDEN_SCORE, 0.0).to(wide)[:, None]
        torch.softmax(total, -1, out=total)
        if dropout_p > 0.0 and seed is not None:
            total *= keep_mask(
                seed, dropout_p, batch, heads, (0, queries), keys,
                device=scores.device, batch_range=(b, b + 1),
            )  # fmt: skip
            total *= 1.0 / (1.0 - dropout_p)
        out[one] = total


def masked_softmax_backward(
    grad_out: Tensor,
    out: Tensor,
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    grads: Sequence[Tensor],
) -> None:
    """Fill ``grads``, shaped like scores, position_scores and segment_scores (empty where None)."""
    batch, heads, queries, keys = scores.shape
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    rows = row_positions(positions, queries, scores.device)
    probabilities = out
    if dropout_p > 0.0:
        probabilities = torch.empty_like(out)
        masked_softmax_forward(
            scores, position_scores, segment_scores, segments_q, segments_k,
            mask, positions, memory_length, scale, 0.0, None, probabilities,
        )  # fmt: skip
    d_scores, d_position, d_segment = grads
    d_position.zero_()
    for b in range(batch):
        one = slice(b, b + 1)
        total = grad_out[one].to(wide, copy=True)
        delta = (total * out[one]).sum(-1, keepdim=True)
        if dropout_p > 0.0 and seed is not None:
            total *= keep_mask(
                seed, dropout_p, batch, heads, (0, queries), keys,
                device=scores.device, batch_range=(b, b + 1),
            )  # fmt: skip
            total *= 1.0 / (1.0 - dropout_p)
        total = (total - delta) * probabilities[one] * scale
        d_scores[one] = total
        if position_scores is not None:
            index, inside = _shift_index(
                rows if positions is None else rows[one], keys, memory_length, d_position.shape[3]
            )
            d_position[one].scatter_add_(
                -1, index.expand(1, heads, -1, -1), (total * inside).to(d_position.dtype)
            )
        if segment_scores is not None and segments_q is not None and segments_k is not None:
            differ = segments_q[one, None, :, None] != segments_k[one, None, None, :]
            d_segment[one] = (total * differ).sum(-1)


def _shift_index(rows: Tensor, keys: int, memory_length: int, table: int) -> tuple[Tensor, Tensor]:
    """p = j - pos_i + L clamped into the table, (b, 1, I, J), and whether it was inside."""
    key = torch.arange(keys, device=rows.device)
    index = (key - rows[:, :, None] + (keys - memory_length))[:, None]
    return index.clamp(0, table - 1), (index >= 0) & (index < table)
