"""Relative attention in plain PyTorch, chunk by chunk: any device, no extension.

On a GPU :mod:`xlnet_fast.kernels.sdpa.few_launches` does the work; what follows is for a CPU.

A window limits the keys of a chunk to those that one of its rows may see, unless one sees none at
all: such a row is uniform over all keys.

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
from dataclasses import replace

import torch
from torch import Tensor

from xlnet_fast.kernels.sdpa import few_launches, few_launches_backward
from xlnet_fast.kernels.sdpa.blocks import Chunk
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


class _Attention:
    """One stream's queries, packed for batched GEMMs, and the passes over one chunk."""

    def __init__(self, keys: Keys, packed: PackedKeys, queries: Queries) -> None:
        q = queries.q
        self.batch, self.queries, self.heads, self.dim = q.shape
        self.keys, self.current = packed.count, packed.current
        self.memory_length, self.r_start = packed.memory_length, packed.r_start
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

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, each within one group of r and within CHUNK_ELEMENTS scores."""
        groups = self.r.shape[0]
        per_group = self.batch // groups
        rows, is_narrow = min(self.queries, CHUNK_ROWS), self.mask.has_window
        columns = self.heads * self.keys
        if is_narrow:
            columns = self.heads * max(1, len(self._span(0, rows - 1)))
        elements = min(per_group, max(1, CHUNK_ELEMENTS // (columns * rows)))
        if is_narrow and self.mask.may_hide_all:
            elements = 1  # where a row sees none, no other element is to meet all keys
        elif elements == 1 and not is_narrow:
            rows = min(self.queries, max(1, CHUNK_ELEMENTS // columns))
        for group in range(groups):
            end = (group + 1) * per_group
            for b0 in range(group * per_group, end, elements):
                for i0 in range(0, self.queries, rows):
                    i1 = min(i0 + rows, self.queries)
                    yield self._chunk(group, slice(b0, min(b0 + elements, end)), slice(i0, i1))

    def _chunk(self, group: int, elements: slice, rows: slice) -> Chunk:
        """The chunk of these rows, with the keys that it has to meet."""
        place = (group, elements.start, elements.stop, rows.start, rows.stop)
        last = max(0, self.current - 1)  # without current keys every row is absent
        lowest, highest = rows.start, rows.stop - 1
        if self.positions is not None:
            lowest, highest = 0, last
            if self.mask.has_window:
                present = self.positions[elements, rows].clamp(0, last)
                lowest, highest = int(present.min()), int(present.max())
        everything = Chunk(*place, 0, self.keys, lowest, highest)
        if not self.mask.has_window:
            return everything
        span = self._span(lowest, highest)
        chunk = Chunk(*place, span.start, span.stop, lowest, highest)
        if chunk.width == 0 or (self.mask.may_hide_all and self._hides_all(chunk)):
            return everything
        return chunk

    def _span(self, lowest: int, highest: int) -> range:
        return self.mask.window_span(lowest, highest, self.keys, self.memory_length)

    def _hides_all(self, chunk: Chunk) -> bool:
        """Whether a row of the chunk sees none of its keys."""
        hidden = self._hidden(chunk)
        return hidden is not None and bool(hidden.all(-1).any())

    def _hidden(self, chunk: Chunk) -> Tensor | None:
        """(b or 1, rows or 1, keys of the chunk) bool, or None."""
        mask = self.mask.narrow_batch(chunk.b0, chunk.b1 - chunk.b0)
        rows = self.rows if self.positions is None else self.rows[chunk.elements]
        sizes = (self.keys, self.memory_length)
        return mask.hidden(rows, *sizes, slice(chunk.i0, chunk.i1), chunk.columns)

    def scores(self, chunk: Chunk) -> Tensor:
        """Scaled, masked scores of one chunk, (b, N, rows, w) contiguous in ``score_dtype``."""
        position, hidden = self._position_scores(chunk), self._hidden(chunk)
        scores = torch.empty(position.shape, dtype=self.score_dtype, device=position.device)
        if hidden is None:
            scores.copy_(position)
        else:
            penalty = torch.where(hidden, HIDDEN_SCORE, 0.0).to(self.score_dtype)[:, None]
            torch.add(position, penalty, out=scores)
        if self.segment_score is not None:
            scores.addcmul_(
                self.segments_differ(chunk).to(self.score_dtype),
                self.segment_score[chunk.index_of_heads],
            )
        flat = scores.view(-1, *scores.shape[2:])
        q_w, k = self.q_w[chunk.index_of_heads].flatten(0, 1), self.of_keys(self.k, chunk)
        if q_w.dtype == self.score_dtype:
            flat.baddbmm_(q_w, k.transpose(1, 2))
        else:
            flat += torch.bmm(q_w, k.transpose(1, 2))
        return scores

    def of_keys(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Of keys, values or their gradients (B, N, J, D) the chunk's, (b * N, w, D), a view."""
        return x[chunk.elements, :, chunk.columns].flatten(0, 1)

    def softmax_(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, in place."""
        return torch.softmax(scores, -1, out=scores)

    def dropout_factor(self, chunk: Chunk) -> Tensor | None:
        """0 or 1 / (1 - p) for every probability of the chunk, None without dropout."""
        if self.dropout_p == 0.0 or self.seed is None:
            return None
        keep = keep_mask(
            self.seed,
            self.dropout_p,
            self.batch,
            self.heads,
            (chunk.i0, chunk.i1),
            chunk.j1,
            device=self.q_w.device,
            batch_range=(chunk.b0, chunk.b1),
        )[..., chunk.j0 :]
        return keep.to(self.score_dtype).mul_(1.0 / (1.0 - self.dropout_p))

    def segments_differ(self, chunk: Chunk) -> Tensor:
        """(b, 1, rows, w) bool."""
        assert self.segments_q is not None
        assert self.segments_k is not None
        segments_q = self.segments_q[chunk.index]
        segments_k = self.segments_k[chunk.elements, chunk.columns]
        return segments_q[:, None, :, None] != segments_k[:, None, None, :]

    def _position_scores(self, chunk: Chunk) -> Tensor:
        """(b, N, rows, w) view (running positions) or tensor (arbitrary ones)."""
        start, length = self.table_rows(chunk)
        r = self.r[chunk.group].narrow(1, start, length)  # (N, W, D)
        table = torch.bmm(self.grouped(self.q_r, chunk), r.transpose(1, 2))
        return self.shift(table, chunk)

    def table_rows(self, chunk: Chunk) -> tuple[int, int]:
        """First row and number of rows of the packed r that the rows of a chunk touch."""
        first = chunk.j0 - chunk.highest + self.current - self.r_start
        end = chunk.j1 - chunk.lowest + self.current - self.r_start
        first = max(0, first)  # only absent rows, without current keys, are before r
        return first, end - first

    def grouped(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(N, b * rows, D): all rows that multiply the same r."""
        return x[chunk.index_of_heads].transpose(0, 1).flatten(1, 2)

    def shift(self, table: Tensor, chunk: Chunk) -> Tensor:
        """Position scores (N, b * rows, W) read at p = j - pos_i + L, (b, N, rows, w)."""
        rows = chunk.i1 - chunk.i0
        table = table.view(self.heads, chunk.b1 - chunk.b0, rows, -1).transpose(0, 1)
        if self.positions is None:
            return skewed_view(table, chunk.width)
        return table.gather(-1, self.shift_index(chunk))

    def shift_index(self, chunk: Chunk) -> Tensor:
        """Where rows at arbitrary positions find their scores in the chunk's table.

        (b, N, rows, w) int64; absent rows read row 0's.
        """
        rows = self.rows[chunk.index]
        rows = rows.clamp(chunk.lowest, chunk.highest)
        key = torch.arange(chunk.j0, chunk.j1, device=rows.device)
        first = self.table_rows(chunk)[0]
        index = key - rows[:, :, None] + (self.current - self.r_start - first)
        return index.clamp_(min=0)[:, None].expand(-1, self.heads, -1, -1)


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Fill ``outs``, one (B, I, N, D) a stream; shapes as in :mod:`xlnet_fast.operands`.

    ``stats`` are empty: this backend recomputes the scores in its backward pass.
    """
    if few_launches.suits(streams[0].q):
        few_launches.rel_attention_forward(keys, streams, outs, stats)
        return
    if keys.count == 0:  # so all rows are absent
        for out in outs:
            out.zero_()
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
            values = torch.bmm(flat, attention.of_keys(attention.v, chunk))
            out_heads[chunk.index_of_heads] = values.view(-1, attention.heads, *values.shape[1:])
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
        self.r = zeros(packed.r, r)  # as packed.r
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
    if keys.count == 0:
        for grad in grads:
            if grad is not None:
                grad.zero_()
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
        probabilities = attention.softmax_(attention.scores(chunk)).flatten(0, 1)
        factor = attention.dropout_factor(chunk)
        d_chunk = d_out[chunk.index_of_heads].flatten(0, 1)
        d_scores = torch.bmm(d_chunk, attention.of_keys(attention.v, chunk).transpose(1, 2))
        d_scores = d_scores.to(attention.score_dtype)
        dropped = probabilities
        if factor is not None:
            dropped = probabilities * factor.flatten(0, 1)
            d_scores *= factor.flatten(0, 1)
        if totals.v is not None:
            d_v = attention.of_keys(totals.v, chunk)
            accumulate_bmm(d_v, dropped.to(dtype).transpose(1, 2), d_chunk)
        softmax_backward_(d_scores, probabilities)  # the scale is folded into the queries
        if dc is not None:
            view = d_scores.view(-1, attention.heads, *d_scores.shape[1:])
            dc[chunk.index_of_heads] = (view * attention.segments_differ(chunk)).sum(
                -1, keepdim=True, dtype=wide
            )
        d_scores = d_scores.to(dtype)
        k_chunk = attention.of_keys(attention.k, chunk)
        dq_w[chunk.index_of_heads] = torch.bmm(d_scores, k_chunk).view_as(
            dq_w[chunk.index_of_heads]
        )
        if totals.k is not None:
            q_w = attention.q_w[chunk.index_of_heads].flatten(0, 1)
            accumulate_bmm(attention.of_keys(totals.k, chunk), d_scores.transpose(1, 2), q_w)
        _position_grads(attention, chunk, d_scores, dq_r, totals.r)
    return dq_w, dq_r, dc


def _position_grads(
    attention: _Attention, chunk: Chunk, d_scores: Tensor, dq_r: Tensor, dr: Tensor | None
) -> None:
    """Add one chunk's gradient of the position scores to dq_r (B, N, I, D) and dr (G, N, R, D)."""
    start, length = attention.table_rows(chunk)
    heads, elements, rows = attention.heads, chunk.b1 - chunk.b0, chunk.i1 - chunk.i0
    d_table = d_scores.new_zeros(heads, elements * rows, length)
    view = d_table.view(heads, elements, rows, length).transpose(0, 1)
    d_scores = d_scores.view(elements, heads, rows, chunk.width)
    if attention.positions is None:
        skewed_view(view, chunk.width).copy_(d_scores)
    else:
        view.scatter_(-1, attention.shift_index(chunk), d_scores)
    r = attention.r[chunk.group].narrow(1, start, length)  # (N, W, D)
    d_rows = torch.bmm(d_table, r).view(heads, elements, rows, attention.dim)
    dq_r[chunk.index_of_heads] = d_rows.transpose(0, 1)
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
