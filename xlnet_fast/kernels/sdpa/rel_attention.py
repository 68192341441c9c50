"""Relative attention in plain PyTorch, chunk by chunk: any device, no extension.

On a GPU :mod:`xlnet_fast.kernels.sdpa.few_launches` does the work; what follows is for a CPU.

For a chunk of query rows i0..i1 only the rows r_p with p = j - i + L of its window are needed: one
batched GEMM gives the (rows, window) position scores, and the shift is a strided view of them, row
stride W - 1. Everything else is added to that chunk in place,

    S = skew(q_r r_window^T) + mask + c [seg differ];   S += q_w k^T;   P = softmax(S);   o = P v

so no (b, n, i, j) tensor beyond CHUNK_ELEMENTS exists. The backward pass recomputes S per chunk.
Products run in the input dtype with the scale folded into the queries; fp16 scores are kept in
fp32, because a hidden key's -1e30 does not fit fp16.

Keys and values of a memory and of the current segment are packed side by side into one
(B, N, J, D) buffer, once for all streams of a call.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M, D head dim,
G groups of r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xlnet_fast.kernels.sdpa import few_launches, few_launches_backward
from xlnet_fast.kernels.sdpa.common import (
    PackedKeys,
    accumulate_bmm,
    heads_first,
    skewed_view,
    softmax_backward_,
    wide_dtype,
)
from xlnet_fast.masks import HIDDEN_SCORE, row_positions, take_rows
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.philox import keep_mask

CHUNK_ELEMENTS = 2**21
"""Scores held at once. Chosen on CPU (docs/measured.md): large enough for full-speed GEMMs, small
enough that the passes over a chunk hit the cache."""
CHUNK_ROWS = 128


@dataclass(frozen=True)
class _Chunk:
    """Batch elements b0..b1 (all of group g) and query rows i0..i1."""

    group: int
    b0: int
    b1: int
    i0: int
    i1: int

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Indexes (B, N, I, ...) tensors."""
        return slice(self.b0, self.b1), slice(None), slice(self.i0, self.i1)


class _Attention:
    """One stream's queries, packed for batched GEMMs, and the passes over one chunk."""

    def __init__(self, keys: Keys, packed: PackedKeys, queries: Queries) -> None:
        q = queries.q
        self.batch, self.queries, self.heads, self.dim = q.shape
        self.keys, self.current = packed.count, packed.current
        self.memory_length = packed.memory_length
        self.k, self.v, self.r = packed.k, packed.v, packed.r
        self.positions = queries.positions
        self.rows = row_positions(self.positions, self.queries, q.device)
        self.scale, self.dropout_p, self.seed = keys.scale, keys.dropout_p, queries.seed
        self.wide = wide_dtype(q)
        self.score_dtype = torch.float32 if q.dtype == torch.float16 else q.dtype

        self.mask, segments_q = queries.mask, queries.segments
        if queries.by_position and self.positions is not None:
            per_row = (segments_q, self.mask.rank_q, self.mask.bits)
            segments_q, rank_q, bits = (take_rows(x, self.positions) for x in per_row)
            self.mask = replace(self.mask, rank_q=rank_q, bits=bits)

        self.q_w = heads_first((q + keys.r_w_bias).mul_(self.scale))  # (B, N, I, D)
        self.q_r = heads_first((q + keys.r_r_bias).mul_(self.scale))  # (B, N, I, D)
        self.segment_score: Tensor | None = None  # (B, N, I, 1)
        if segments_q is not None and keys.r_s_bias is not None and keys.seg_embed is not None:
            difference = (keys.seg_embed[1] - keys.seg_embed[0]).to(self.wide) * self.scale
            score = ((q + keys.r_s_bias).to(self.wide) * difference).sum(-1)  # (B, I, N)
            self.segment_score = score.to(self.score_dtype).transpose(1, 2)[..., None]
        self.segments_q, self.segments_k = segments_q, keys.segments

    def chunks(self) -> Iterator[_Chunk]:
        """All chunks, each within one group of r and within CHUNK_ELEMENTS scores."""
        groups = self.r.shape[0]
        per_group = self.batch // groups
        columns = self.heads * self.keys
        rows = min(self.queries, CHUNK_ROWS)
        elements = min(per_group, max(1, CHUNK_ELEMENTS // (columns * rows)))
        if elements == 1:
            rows = min(self.queries, max(1, CHUNK_ELEMENTS // columns))
        for group in range(groups):
            end = (group + 1) * per_group
            for b0 in range(group * per_group, end, elements):
                for i0 in range(0, self.queries, rows):
                    yield _Chunk(
                        group, b0, min(b0 + elements, end), i0, min(i0 + rows, self.queries)
                    )

    def scores(self, chunk: _Chunk) -> Tensor:
        """Scaled, masked scores of one chunk, (b, N, rows, J) contiguous in ``score_dtype``."""
        position = self._position_scores(chunk)
        hidden = self.mask.narrow_batch(chunk.b0, chunk.b1 - chunk.b0).hidden(
            self._chunk_rows(chunk), self.keys, self.memory_length, slice(chunk.i0, chunk.i1)
        )
        scores = torch.empty(position.shape, dtype=self.score_dtype, device=position.device)
        if hidden is None:
            scores.copy_(position)
        else:
            penalty = torch.where(hidden, HIDDEN_SCORE, 0.0).to(self.score_dtype)[:, None]
            torch.add(position, penalty, out=scores)
        if self.segment_score is not None:
            scores.addcmul_(
                self.segments_differ(chunk).to(self.score_dtype),
                self.segment_score[chunk.index],
            )
        flat = scores.view(-1, *scores.shape[2:])
        q_w, k = self.q_w[chunk.index].flatten(0, 1), self.k[chunk.b0 : chunk.b1].flatten(0, 1)
        if q_w.dtype == self.score_dtype:
            flat.baddbmm_(q_w, k.transpose(1, 2))
        else:
            flat += torch.bmm(q_w, k.transpose(1, 2))
        return scores

    def softmax_(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, in place."""
        return torch.softmax(scores, -1, out=scores)

    def dropout_factor(self, chunk: _Chunk) -> Tensor | None:
        """0 or 1 / (1 - p) for every probability of the chunk, None without dropout."""
        if self.dropout_p == 0.0 or self.seed is None:
            return None
        keep = keep_mask(
            self.seed,
            self.dropout_p,
            self.batch,
            self.heads,
            (chunk.i0, chunk.i1),
            self.keys,
            device=self.q_w.device,
            batch_range=(chunk.b0, chunk.b1),
        )
        return keep.to(self.score_dtype).mul_(1.0 / (1.0 - self.dropout_p))

    def _chunk_rows(self, chunk: _Chunk) -> Tensor:
        """Positions of all query rows of the chunk's batch elements, (b or 1, I)."""
        return self.rows if self.positions is None else self.rows[chunk.b0 : chunk.b1]

    def segments_differ(self, chunk: _Chunk) -> Tensor:
        """(b, 1, rows, J) bool."""
        assert self.segments_q is not None
        assert self.segments_k is not None
        segments_q = self.segments_q[chunk.b0 : chunk.b1, chunk.i0 : chunk.i1]
        return segments_q[:, None, :, None] != self.segments_k[chunk.b0 : chunk.b1, None, None, :]

    def window(self, chunk: _Chunk) -> tuple[int, int]:
        """First row and number of rows of r that a chunk of running positions touches."""
        return self.current - chunk.i1 + 1, self.keys + chunk.i1 - chunk.i0 - 1

    def _position_scores(self, chunk: _Chunk) -> Tensor:
        """(b, N, rows, J) view (running positions) or tensor (arbitrary ones)."""
        start, length = self.table_rows(chunk)
        r = self.r[chunk.group].narrow(1, start, length)  # (N, W, D)
        table = torch.bmm(self.grouped(self.q_r, chunk), r.transpose(1, 2))
        return self.shift(table, chunk)

    def table_rows(self, chunk: _Chunk) -> tuple[int, int]:
        return self.window(chunk) if self.positions is None else (0, self.r.shape[2])

    def grouped(self, x: Tensor, chunk: _Chunk) -> Tensor:
        """(N, b * rows, D): all rows that multiply the same r."""
        return x[chunk.index].transpose(0, 1).flatten(1, 2)

    def shift(self, table: Tensor, chunk: _Chunk) -> Tensor:
        """Position scores (N, b * rows, W) read at p = j - pos_i + L, (b, N, rows, J)."""
        rows = chunk.i1 - chunk.i0
        table = table.view(self.heads, chunk.b1 - chunk.b0, rows, -1).transpose(0, 1)
        if self.positions is None:
            return skewed_view(table, self.keys)
        return table.gather(-1, self.shift_index(chunk))

    def shift_index(self, chunk: _Chunk) -> Tensor:
        """p of arbitrary positions, (b, N, rows, J) int64; absent rows read row 0's."""
        last = max(0, self.current - 1)  # without current keys every row is absent
        rows = self.rows[chunk.b0 : chunk.b1, chunk.i0 : chunk.i1].clamp(0, last)
        key = torch.arange(self.keys, device=rows.device)
        index = key - rows[:, :, None] + self.current
        return index[:, None].expand(-1, self.heads, -1, -1)


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Fill ``outs``, one (B, I, N, D) a stream; shapes as in :mod:`xlnet_fast.operands`.

    ``stats`` are empty: this backend recomputes the scores in its backward pass.
    """
    if few_launches.suits(streams[0].q):
        few_launches.rel_attention_forward(keys, streams, outs, stats)
        return
    packed = PackedKeys(keys, streams[0].mask.key_padding)
    for queries, out in zip(streams, outs, strict=True):
        attention = _Attention(keys, packed, queries)
        out_heads = out.transpose(1, 2)  # (B, N, I, D)
        for chunk in attention.chunks():
            probabilities = attention.softmax_(attention.scores(chunk))
            factor = attention.dropout_factor(chunk)
            if factor is not None:
                probabilities *= factor
            flat = probabilities.flatten(0, 1).to(out.dtype)
            values = torch.bmm(flat, attention.v[chunk.b0 : chunk.b1].flatten(0, 1))
            out_heads[chunk.index] = values.view(-1, attention.heads, *values.shape[1:])
        if queries.positions is not None:
            out.masked_fill_((queries.positions < 0)[:, :, None, None], 0)


class _Totals:
    """Gradients that all chunks of all streams add to, in fp32 or wider; None: nobody asked."""

    def __init__(self, packed: PackedKeys, grads: Sequence[Tensor | None]) -> None:
        k, v, k_memory, v_memory, r, *_ = grads
        _, heads, _, dim = packed.k.shape

        def zeros(like: Tensor, *wanted: Tensor | None) -> Tensor | None:
            if all(grad is None for grad in wanted):
                return None
            return torch.zeros_like(like, dtype=wide_dtype(like))

        self.k = zeros(packed.k, k, k_memory)  # (B, N, J, D)
        self.v = zeros(packed.v, v, v_memory)  # (B, N, J, D)
        self.r = zeros(packed.r, r)  # (G, N, L + J, D)
        # r_w_bias, r_r_bias, r_s_bias, seg_embed[1] - seg_embed[0]: (4, N, D)
        self.vectors = packed.k.new_zeros(4, heads, dim, dtype=wide_dtype(packed.k))


def rel_attention_backward(
    keys: Keys,
    streams: Sequence[Queries],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    grad_outs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    deterministic: bool,
) -> None:
    """Fill ``grads`` by recomputation (formulas: docs/maths.md), always deterministic on the CPU.

    ``grads`` are shaped like q of each stream, k, v, k_memory, v_memory, r, r_w_bias, r_r_bias,
    r_s_bias and seg_embed; None where there is no such operand or nobody asks for its gradient.
    ``outs``, ``stats`` and ``deterministic`` are not needed here: the order of all sums is fixed.
    """
    if few_launches.suits(streams[0].q):
        few_launches_backward.rel_attention_backward(
            keys, streams, outs, stats, grad_outs, grads, deterministic
        )
        return
    shared = grads[len(streams) :]
    packed = PackedKeys(keys, streams[0].mask.key_padding)
    totals = _Totals(packed, shared)
    for queries, grad_out, grad_q in zip(streams, grad_outs, grads, strict=False):
        if queries.positions is not None:
            grad_out = grad_out.masked_fill((queries.positions < 0)[:, :, None, None], 0)
        attention = _Attention(keys, packed, queries)
        dq_w, dq_r, dc = _stream_backward(attention, heads_first(grad_out), totals)
        _add_vectors(keys, attention, queries.q, (dq_w, dq_r, dc), totals, grad_q)
    _write_shared(keys, totals, shared)


def _stream_backward(
    attention: _Attention, d_out: Tensor, totals: _Totals
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From d_out (B, N, I, D): gradients of q_w, q_r (alike) and of the segment score (B, N, I, 1).

    Adds those of keys, values and positions to ``totals``.
    """
    dtype, wide = d_out.dtype, attention.wide
    dq_w, dq_r = torch.empty_like(attention.q_w), torch.empty_like(attention.q_r)
    dc = None
    if attention.segment_score is not None:
        dc = d_out.new_empty((*d_out.shape[:3], 1), dtype=wide)
    for chunk in attention.chunks():
        elements = slice(chunk.b0, chunk.b1)
        probabilities = attention.softmax_(attention.scores(chunk)).flatten(0, 1)
        factor = attention.dropout_factor(chunk)
        d_chunk = d_out[chunk.index].flatten(0, 1)
        d_scores = torch.bmm(d_chunk, attention.v[elements].flatten(0, 1).transpose(1, 2))
        d_scores = d_scores.to(attention.score_dtype)
        dropped = probabilities
        if factor is not None:
            dropped = probabilities * factor.flatten(0, 1)
            d_scores *= factor.flatten(0, 1)
        if totals.v is not None:
            accumulate_bmm(totals.v[elements], dropped.to(dtype).transpose(1, 2), d_chunk)
        softmax_backward_(d_scores, probabilities)  # the scale is folded into the queries
        if dc is not None:
            view = d_scores.view(-1, attention.heads, *d_scores.shape[1:])
            dc[chunk.index] = (view * attention.segments_differ(chunk)).sum(
                -1, keepdim=True, dtype=wide
            )
        d_scores = d_scores.to(dtype)
        k_chunk = attention.k[elements].flatten(0, 1)
        dq_w[chunk.index] = torch.bmm(d_scores, k_chunk).view_as(dq_w[chunk.index])
        if totals.k is not None:
            q_w = attention.q_w[chunk.index].flatten(0, 1)
            accumulate_bmm(totals.k[elements], d_scores.transpose(1, 2), q_w)
        _position_grads(attention, chunk, d_scores, dq_r, totals.r)
    return dq_w, dq_r, dc


def _position_grads(
    attention: _Attention, chunk: _Chunk, d_scores: Tensor, dq_r: Tensor, dr: Tensor | None
) -> None:
    """Add one chunk's gradient of the position scores to dq_r (B, N, I, D) and dr (G, N, R, D)."""
    start, length = attention.table_rows(chunk)
    heads, elements, rows = attention.heads, chunk.b1 - chunk.b0, chunk.i1 - chunk.i0
    d_table = d_scores.new_zeros(heads, elements * rows, length)
    view = d_table.view(heads, elements, rows, length).transpose(0, 1)
    d_scores = d_scores.view(elements, heads, rows, attention.keys)
    if attention.positions is None:
        skewed_view(view, attention.keys).copy_(d_scores)
    else:
        view.scatter_(-1, attention.shift_index(chunk), d_scores)
    r = attention.r[chunk.group].narrow(1, start, length)  # (N, W, D)
    d_rows = torch.bmm(d_table, r).view(heads, elements, rows, attention.dim)
    dq_r[chunk.index] = d_rows.transpose(0, 1)
    if dr is not None:
        q_r = attention.grouped(attention.q_r, chunk)
        dr[chunk.group].narrow(1, start, length).add_(torch.bmm(d_table.transpose(1, 2), q_r))


def _add_vectors(
    keys: Keys,
    attention: _Attention,
    q: Tensor,
    packed: tuple[Tensor, Tensor, Tensor | None],
    totals: _Totals,
    grad_q: Tensor | None,
) -> None:
    """From gradients of one stream's packed, scaled queries to those of q and of the vectors."""
    dq_w, dq_r, dc = packed
    dq_w, dq_r = (x.to(attention.wide) * attention.scale for x in (dq_w, dq_r))
    totals.vectors[0] += dq_w.sum((0, 2))
    totals.vectors[1] += dq_r.sum((0, 2))
    dq = dq_w + dq_r
    if dc is not None and keys.r_s_bias is not None and keys.seg_embed is not None:
        dc = dc * attention.scale  # (B, N, I, 1)
        difference = (keys.seg_embed[1] - keys.seg_embed[0]).to(attention.wide)  # (N, D)
        q_s = heads_first(q + keys.r_s_bias).to(attention.wide)
        totals.vectors[2] += dc.sum((0, 2)) * difference
        totals.vectors[3] += (dc * q_s).sum((0, 2))
        dq += dc * difference[:, None, :]
    if grad_q is not None:
        grad_q.copy_(dq.transpose(1, 2))


def _write_shared(keys: Keys, totals: _Totals, grads: Sequence[Tensor | None]) -> None:
    """``totals`` into the gradients of what all streams share, memory and current keys apart."""
    k, v, k_memory, v_memory, r, *vectors, seg_embed = grads
    apart = 0 if keys.k_memory is None else keys.k_memory.shape[1]
    for total, memory, current in ((totals.k, k_memory, k), (totals.v, v_memory, v)):
        if total is not None and memory is not None:
            memory.copy_(total[:, :, :apart].transpose(1, 2))
        if total is not None and current is not None:
            current.copy_(total[:, :, apart:].transpose(1, 2))
    if totals.r is not None and r is not None:
        used = min(r.shape[1], totals.r.shape[2])
        r.zero_()
        r[:, :used] = totals.r[:, :, :used].transpose(1, 2)
    for grad, value in zip(vectors, totals.vectors[:3], strict=True):
        if grad is not None:
            grad.copy_(value)
    if seg_embed is not None:
        seg_embed.copy_(torch.stack([-totals.vectors[3], totals.vectors[3]]))
