"""Relative attention in plain PyTorch, chunk by chunk: any device, no extension.

For a chunk of query rows i0..i1 only the rows r_p with p = j - i + L of its window are needed: one
batched GEMM gives the (rows, window) position scores, and the shift is a strided view of them, row
stride W - 1. Everything else is added to that chunk in place,

    S = skew(q_r r_window^T) + mask + c [seg differ];   S += q_w k^T;   P = softmax(S);   o = P v

so no (b, n, i, j) tensor beyond CHUNK_ELEMENTS exists. The backward pass recomputes S per chunk.
Products run in the input dtype with the scale folded into the queries; fp16 scores are kept in
fp32, because a hidden key's -1e30 does not fit fp16.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M, D head dim,
G groups of r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.kernels.sdpa.common import skewed_view, softmax_backward_
from xlnet_fast.masks import HIDDEN_SCORE, AttentionMask, clear_padded, row_positions
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
    """One call's operands, packed for batched GEMMs, and the passes over one chunk."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        r: Tensor,
        r_w_bias: Tensor,
        r_r_bias: Tensor,
        r_s_bias: Tensor | None,
        seg_embed: Tensor | None,
        segments_q: Tensor | None,
        segments_k: Tensor | None,
        mask: AttentionMask,
        positions: Tensor | None,
        memory_length: int,
        scale: float,
        dropout_p: float,
        seed: Tensor | None,
    ) -> None:
        self.batch, self.queries, self.heads, self.dim = q.shape
        self.keys = k.shape[1]
        self.current = self.keys - memory_length
        self.memory_length = memory_length
        self.mask, self.positions = mask, positions
        self.rows = row_positions(positions, self.queries, q.device)
        self.scale, self.dropout_p, self.seed = scale, dropout_p, seed
        self.wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.score_dtype = torch.float32 if q.dtype == torch.float16 else q.dtype

        self.q_w = _heads_first((q + r_w_bias).mul_(scale))  # (B, N, I, D)
        self.q_r = _heads_first((q + r_r_bias).mul_(scale))  # (B, N, I, D)
        self.k = _heads_first(_clear_padded(k, mask.key_padding))  # (B, N, J, D)
        self.v = _heads_first(_clear_padded(v, mask.key_padding))  # (B, N, J, D)
        self.r = self._pack_positions(r)  # (G, N, L + J, D)
        self.segment_score: Tensor | None = None  # (B, N, I, 1)
        if segments_q is not None and r_s_bias is not None and seg_embed is not None:
            difference = (seg_embed[1] - seg_embed[0]).to(self.wide) * scale  # (N, D)
            score = ((q + r_s_bias).to(self.wide) * difference).sum(-1)  # (B, I, N)
            self.segment_score = score.to(self.score_dtype).transpose(1, 2)[..., None]
        self.segments_q, self.segments_k = segments_q, segments_k

    def _pack_positions(self, r: Tensor) -> Tensor:
        """r with exactly L + J rows: "uni" lacks the rows of hidden keys, zeros stand for them."""
        groups, table = r.shape[:2]
        needed = self.current + self.keys
        if table >= needed:
            return _heads_first(r[:, :needed])
        packed = r.new_zeros(groups, self.heads, needed, self.dim)
        packed[:, :, :table] = r.transpose(1, 2)
        return packed

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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
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
    """Fill ``out`` (B, I, N, D); shapes as in :func:`xlnet_fast.ops.rel_attention`."""
    attention = _Attention(
        q, k, v, r, r_w_bias, r_r_bias, r_s_bias, seg_embed, segments_q, segments_k,
        mask, positions, memory_length, scale, dropout_p, seed,
    )  # fmt: skip
    out_heads = out.transpose(1, 2)  # (B, N, I, D)
    for chunk in attention.chunks():
        probabilities = attention.softmax_(attention.scores(chunk))
        factor = attention.dropout_factor(chunk)
        if factor is not None:
            probabilities *= factor
        flat = probabilities.flatten(0, 1).to(q.dtype)
        values = torch.bmm(flat, attention.v[chunk.b0 : chunk.b1].flatten(0, 1))
        out_heads[chunk.index] = values.view(-1, attention.heads, *values.shape[1:])
    if positions is not None:
        out.masked_fill_((positions < 0)[:, :, None, None], 0)


def rel_attention_backward(
    grad_out: Tensor,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
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
    """Fill ``grads`` by recomputation (formulas: docs/maths.md), deterministic on CPU.

    ``grads`` are shaped like q, k, v, r, r_w_bias, r_r_bias, r_s_bias and seg_embed; the last two
    are empty, and left alone, without segments. ``out`` is not needed here.
    """
    attention = _Attention(
        q, k, v, r, r_w_bias, r_r_bias, r_s_bias, seg_embed, segments_q, segments_k,
        mask, positions, memory_length, scale, dropout_p, seed,
    )  # fmt: skip
    if positions is not None:
        grad_out = grad_out.masked_fill((positions < 0)[:, :, None, None], 0)
    wide = attention.wide
    d_out = _heads_first(grad_out)  # (B, N, I, D)
    dq_w, dq_r = torch.empty_like(attention.q_w), torch.empty_like(attention.q_r)
    dk = torch.zeros_like(attention.k, dtype=wide)
    dv = torch.zeros_like(attention.v, dtype=wide)
    dr = torch.zeros_like(attention.r, dtype=wide)
    dc = (
        None
        if attention.segment_score is None
        else d_out.new_empty((*d_out.shape[:3], 1), dtype=wide)
    )
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
        _accumulate_bmm(dv[elements], dropped.to(q.dtype).transpose(1, 2), d_chunk)
        softmax_backward_(d_scores, probabilities)  # the scale is folded into the queries
        if dc is not None:
            view = d_scores.view(-1, attention.heads, *d_scores.shape[1:])
            dc[chunk.index] = (view * attention.segments_differ(chunk)).sum(
                -1, keepdim=True, dtype=wide
            )
        d_scores = d_scores.to(q.dtype)
        k_chunk = attention.k[elements].flatten(0, 1)
        dq_w[chunk.index] = torch.bmm(d_scores, k_chunk).view_as(dq_w[chunk.index])
        q_w = attention.q_w[chunk.index].flatten(0, 1)
        _accumulate_bmm(dk[elements], d_scores.transpose(1, 2), q_w)
        _position_grads(attention, chunk, d_scores, dq_r, dr)
    _write_grads(grads, attention, q, r_s_bias, seg_embed, (dq_w, dq_r, dk, dv, dr, dc))


def _position_grads(
    attention: _Attention, chunk: _Chunk, d_scores: Tensor, dq_r: Tensor, dr: Tensor
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
    q_r = attention.grouped(attention.q_r, chunk)
    dr[chunk.group].narrow(1, start, length).add_(torch.bmm(d_table.transpose(1, 2), q_r))


def _write_grads(
    grads: Sequence[Tensor],
    attention: _Attention,
    q: Tensor,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
    packed: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None],
) -> None:
    """From gradients of the packed, scaled operands to gradients of the call's arguments."""
    dq_w, dq_r, dk, dv, dr, dc = packed
    grad_q, grad_k, grad_v, grad_r, grad_w_bias, grad_r_bias, grad_s_bias, grad_seg_embed = grads
    dq_w, dq_r = (x.to(attention.wide) * attention.scale for x in (dq_w, dq_r))
    dq = dq_w + dq_r
    if dc is not None and r_s_bias is not None and seg_embed is not None:
        dc = dc * attention.scale  # (B, N, I, 1)
        difference = (seg_embed[1] - seg_embed[0]).to(attention.wide)  # (N, D)
        q_s = _heads_first(q + r_s_bias).to(attention.wide)
        d_difference = (dc * q_s).sum((0, 2))
        grad_s_bias.copy_(dc.sum((0, 2)) * difference)
        grad_seg_embed.copy_(torch.stack([-d_difference, d_difference]))
        dq += dc * difference[:, None, :]
    used = min(grad_r.shape[1], dr.shape[2])
    grad_r.zero_()
    grad_r[:, :used] = dr[:, :, :used].transpose(1, 2)
    for grad, value in ((grad_q, dq), (grad_k, dk), (grad_v, dv)):
        grad.copy_(value.transpose(1, 2))
    grad_w_bias.copy_(dq_w.sum((0, 2)))
    grad_r_bias.copy_(dq_r.sum((0, 2)))


def _accumulate_bmm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total (b, N, x, y) += a (b * N, x, z) @ b (b * N, z, y), total possibly wider than a."""
    flat = total.flatten(0, 1)
    if total.dtype == a.dtype:
        flat.baddbmm_(a, b)
    else:
        flat += torch.bmm(a, b)


def _heads_first(x: Tensor) -> Tensor:
    """(B, S, N, D) to contiguous (B, N, S, D)."""
    return x.transpose(1, 2).contiguous()


def _clear_padded(x: Tensor, key_padding: Tensor | None) -> Tensor:
    """:func:`clear_padded`, at the price of one sum on the CPU when all of x is finite."""
    if key_padding is None:
        return x
    if x.device.type == "cpu" and bool(torch.isfinite(x.sum(dtype=torch.float32))):
        return x
    return clear_padded(x, key_padding)
