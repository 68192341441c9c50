"""The maths in eager PyTorch: the oracle of every test and the last fallback of every device.

Works in any floating dtype (float64 included), on any device, and is differentiable by autograd.
Written for reading; products run in the input dtype, the softmax in fp32 or wider.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M current keys, D head dim,
P rows of r, G groups of r. The derivation is in ``docs/maths.md``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlnet_fast.masks import (
    HIDDEN_SCORE,
    AttentionMask,
    clear_padded,
    row_positions,
    take_rows,
)
from xlnet_fast.philox import keep_mask
from xlnet_fast.transforms import is_number

ROWS_AT_ONCE = 256
"""Query rows whose scores are made at a time. They are shifted where they lie, which XLA does by
copies of them all; few rows need few rows of r, so that less is copied than HF copies."""


def rel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    mask: AttentionMask | None = None,
    positions: Tensor | None = None,
    memory_length: int | None = None,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    r_start: int = 0,
) -> Tensor:
    """Relative attention of one stream (Transformer-XL section 3.3; HF ``rel_attn_core``).

    Shapes as in :func:`xlnet_fast.ops.rel_attention`. Returns (B, I, N, D) in the dtype of q.
    """
    queries = q.shape[1]
    if k_memory is not None:
        memory_length = k_memory.shape[1]
    k, v = _joined(k_memory, k), _joined(v_memory, v)
    keys = k.shape[1]
    memory_length = keys - queries if memory_length is None else memory_length
    if mask is not None:
        k, v = (clear_padded(x, mask.key_padding) for x in (k, v))
    r = r.repeat_interleave(q.shape[0] // r.shape[0], dim=0)  # (B, P, N or 1, D)
    r = r.expand(-1, -1, q.shape[2], -1)
    segment = None
    if segments_q is not None and seg_embed is not None and r_s_bias is not None:
        segment = seg_embed[1] - seg_embed[0]
    outs = []
    for first, last in _row_blocks(queries):
        rows = q[:, first:last]
        r_of_rows, start = r, r_start
        if positions is None and last - first != queries:
            # p = j - i + L: these rows read neither the first rows of r nor the last
            start = max(r_start, keys - memory_length - last)
            end = 2 * keys - memory_length - first
            r_of_rows = r[:, start - r_start : end - r_start]
        probabilities = masked_softmax(
            torch.einsum("bind,bjnd->bnij", rows + r_w_bias, k),
            position_scores=torch.einsum("bind,bpnd->bnip", rows + r_r_bias, r_of_rows),
            segment_scores=None
            if segment is None or r_s_bias is None
            else torch.einsum("bind,nd->bni", rows + r_s_bias, segment),
            segments_q=segments_q,
            segments_k=segments_k,
            mask=mask,
            positions=positions,
            memory_length=memory_length,
            scale=scale,
            dropout_p=dropout_p,
            seed=seed,
            r_start=start,
            first_row=first,
        )
        outs.append(torch.einsum("bnij,bjnd->bind", probabilities, v))
    out = torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]
    if positions is not None:
        out = out.masked_fill((positions < 0)[:, :, None, None], 0)
    return out


def two_stream_attention(
    q_h: Tensor,
    q_g: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    segments: Tensor | None = None,
    mask: AttentionMask | None = None,
    positions: Tensor | None = None,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    r_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Content and query stream over the same keys (XLNet section 2.3; HF ``forward`` with g).

    Shapes as in :func:`xlnet_fast.ops.two_stream_attention`.
    """
    k, v = _joined(k_memory, k), _joined(v_memory, v)
    memory_length = k.shape[1] - q_h.shape[1]
    mask = AttentionMask() if mask is None else mask
    content_segments = None if segments is None else segments[:, memory_length:]
    query_segments, query_mask = content_segments, replace(mask, see_self=False)
    if positions is not None:
        query_segments = take_rows(content_segments, positions)
        query_mask = replace(
            query_mask,
            rank_q=take_rows(mask.rank_q, positions),
            bits=take_rows(mask.bits, positions),
        )
    shared = (k, v, r, r_w_bias, r_r_bias)
    options: dict[str, Any] = {
        "r_s_bias": r_s_bias,
        "seg_embed": seg_embed,
        "segments_k": segments,
        "memory_length": memory_length,
        "scale": scale,
        "dropout_p": dropout_p,
        "r_start": r_start,
    }
    out_h = rel_attention(
        q_h,
        *shared,
        **options,
        segments_q=content_segments,
        mask=replace(mask, see_self=True),
        seed=seed,
    )
    out_g = rel_attention(
        q_g,
        *shared,
        **options,
        segments_q=query_segments,
        mask=query_mask,
        positions=positions,
        seed=None if seed is None else seed + 1,
    )
    return out_h, out_g


def _row_blocks(queries: int) -> list[tuple[int, int]]:
    """First and last row, excluded, of each block; one block where the number is a symbol."""
    if queries == 0 or not is_number(queries):
        return [(0, queries)]
    starts = range(0, queries, ROWS_AT_ONCE)
    return [(first, min(first + ROWS_AT_ONCE, queries)) for first in starts]


def _joined(memory: Tensor | None, current: Tensor) -> Tensor:
    """Keys or values (B, J, N, D) of both sources: memory (B, M, N, D) or None, then current."""
    return current if memory is None else torch.cat([memory, current], dim=1)


def masked_softmax(
    scores: Tensor,
    *,
    position_scores: Tensor | None = None,
    segment_scores: Tensor | None = None,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    mask: AttentionMask | None = None,
    positions: Tensor | None = None,
    memory_length: int | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    r_start: int = 0,
    first_row: int = 0,
) -> Tensor:
    """Attention probabilities from unscaled scores, shapes as in ``ops.masked_softmax``.

    ``position_scores`` may begin with the column of p = ``r_start``, as the rows of such an r do.
    The scores may be those of I rows from ``first_row`` on; mask, segments_q and positions are
    those of all rows then, and ``memory_length`` is given.

    Returns (B, N, I, J) in the dtype of ``scores``, dropout applied.
    """
    batch, heads, queries, keys = scores.shape
    memory_length = keys - queries if memory_length is None else memory_length
    last_row = first_row + queries
    rows = slice(first_row, last_row)
    at = row_positions(positions, last_row, scores.device)
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    total = scores.to(wide)
    if position_scores is not None:
        if positions is None:
            shifted = skew_in_order(position_scores, keys, memory_length + first_row, r_start)
        else:
            shifted = skew(position_scores, at[:, rows], keys, memory_length, r_start)
        total = total + shifted.to(wide)
    if segment_scores is not None and segments_q is not None and segments_k is not None:
        differ = segments_q[:, None, rows, None] != segments_k[:, None, None, :]
        total = total + segment_scores.to(wide)[..., None] * differ
    total = total * scale
    hidden = None if mask is None else mask.hidden(at, keys, memory_length, rows)
    if hidden is not None:
        # Added, not filled in: the score is absorbed by rounding, its gradient lives on, as in HF.
        total = total + torch.where(hidden, HIDDEN_SCORE, 0.0).to(wide)[:, None]
    probabilities = torch.softmax(total, dim=-1)
    if dropout_p > 0.0:
        if seed is None:
            raise ValueError("dropout_p > 0 needs a seed tensor")
        keep = keep_mask(
            seed, dropout_p, batch, heads, (first_row, last_row), keys, device=scores.device
        )
        probabilities = probabilities * keep / (1.0 - dropout_p)
    return probabilities.to(scores.dtype)


def concat_memory(
    hidden: Tensor, memory: Tensor | None, mem_len: int | None = None, reuse_len: int | None = None
) -> Tensor:
    """Next segment's memory (HF ``cache_mem``; Transformer-XL section 3.2), without gradient.

    Args:
        hidden: (I, B, H) hidden states of this segment.
        memory: (M, B, H) memory before this segment, converted to the dtype of ``hidden``; or None.
        mem_len: rows kept from the end; None or 0 keeps all.
        reuse_len: only the first ``reuse_len`` rows of ``hidden`` are remembered; None or 0: all.

    Returns:
        (min(mem_len, M + kept), B, H), the last rows of ``[memory; hidden[:reuse_len]]``.
    """
    current = hidden[:reuse_len] if reuse_len else hidden
    joined = current if memory is None else torch.cat([memory.to(hidden.dtype), current], dim=0)
    return (joined[-mem_len:] if mem_len else joined).detach().clone()


def skew(
    position_scores: Tensor, rows: Tensor, keys: int, memory_length: int, start: int = 0
) -> Tensor:
    """Read (B, N, I, P) scores at p = j - pos_i + L: the index identity behind ``rel_shift``.

    Args:
        position_scores: (B, N, I, P), one score per row of r.
        rows: (B or 1, I) position of each query row.
        start: the p of column 0.

    Returns:
        (B, N, I, J). Where r has no row p (keys that "uni" hides) the score is zero.
    """
    batch, heads, queries, table = position_scores.shape
    key = torch.arange(keys, device=rows.device)
    first = keys - memory_length - start
    index = key - rows.to(torch.int64)[:, :, None] + first  # (B or 1, I, J)
    outside = ((index < 0) | (index >= table))[:, None]
    index = index.clamp(0, table - 1)[:, None].expand(batch, heads, queries, keys)
    return position_scores.gather(-1, index).masked_fill(outside, 0)


def skew_in_order(position_scores: Tensor, keys: int, memory_length: int, start: int = 0) -> Tensor:
    """:func:`skew` of rows 0 .. I - 1 in order, without a gather, which XLA rates badly.

    Of rows of I + J columns, the first of which is p = L - I and zero where there is no such p,
    element (i, j - i + I) is number i (I + J - 1) + j + I of them all: I numbers on, the rows of
    the result begin, each I + J - 1 from the one before. This is HF's ``rel_shift``, which drops
    them as a row of I + J rows of I: a TPU lays those out without waste.
    """
    queries, table = position_scores.shape[-2:]
    if queries == 0:  # nothing to shift, and no rows of I + J - 1
        return position_scores[..., :1].expand(*position_scores.shape[:-1], keys)
    first = keys - memory_length - start - queries  # the column of p = L - I
    before, behind = torch.sym_max(0, -first), torch.sym_max(0, first + queries + keys - table)
    wide = F.pad(position_scores, (before, behind))
    wide = wide.narrow(-1, torch.sym_max(0, first), queries + keys)
    # By one dimension, so that a symbol for the length stays free of conditions.
    turned = wide.flatten(-2).unflatten(-1, (queries + keys, queries))[..., 1:, :]
    return turned.flatten(-2).unflatten(-1, (queries, queries + keys - 1))[..., :keys]
