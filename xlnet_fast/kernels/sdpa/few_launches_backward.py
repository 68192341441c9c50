"""Backward pass of :mod:`xlnet_fast.kernels.sdpa.few_launches`: blocks are computed again.

Formulas: docs/maths.md. A gradient of keys or values that one block alone adds to is written by its
GEMM; others are summed in fp32 or wider. The order of all sums is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.kernels.sdpa import budget
from xlnet_fast.kernels.sdpa.blocks import Block
from xlnet_fast.kernels.sdpa.common import softmax_backward_, wide_dtype
from xlnet_fast.kernels.sdpa.few_launches import (
    Shared,
    Stream,
    add_product,
    by_row,
    is_mergeable,
    merge,
    of_keys,
)
from xlnet_fast.operands import Keys, Queries


class _KeySum:
    """The gradient of keys or of values, (B, J, N, D) of two sources, block by block."""

    def __init__(
        self, like: Tensor, memory: Tensor | None, current: Tensor | None, once: bool
    ) -> None:
        """``like`` has the shape; ``once``: no element is added to twice."""
        self.memory, self.current, self.once = memory, current, once
        self.direct = once and memory is None and current is not None and is_mergeable(current)
        self.direct = self.direct and current is not None and current.shape == like.shape
        self.total: Tensor | None = current if self.direct else None
        self.wanted = memory is not None or current is not None
        if self.wanted and not self.direct:
            batch, keys, heads, dim = like.shape
            shape, dtype = (keys, batch, heads, dim), like.dtype if once else wide_dtype(like)
            self.total = like.new_zeros(shape, dtype=dtype).transpose(0, 1)

    def add(self, block: Block, a: Tensor, b: Tensor, alpha: float) -> None:
        """Add alpha a (b * N, w, rows) @ b (b * N, rows, D) to a block's elements."""
        if self.total is None:
            return
        flat = of_keys(self.total, block)
        if self.once:
            flat.baddbmm_(a, b, beta=0, alpha=alpha)
        else:
            _accumulate(flat, a, b, alpha)

    def write(self) -> None:
        """The sum to the gradients of both sources."""
        if self.direct or self.total is None:
            return
        apart = 0 if self.memory is None else self.memory.shape[1]
        apart = self.total.shape[1] - self.current.shape[1] if self.current is not None else apart
        if self.memory is not None:
            self.memory.copy_(self.total[:, :apart])
        if self.current is not None:
            self.current.copy_(self.total[:, apart:])


class _Totals:
    """Gradients of what the streams share; None: nobody asked."""

    def __init__(
        self, shared: Shared, grads: Sequence[Tensor | None], once: bool, r_once: bool
    ) -> None:
        """``once``: keys, and ``r_once``: rows of r are added to by one product only."""
        k, v, k_memory, v_memory, r, *_ = grads
        self.k = _KeySum(shared.k, k_memory, k, once)
        self.v = _KeySum(shared.v, v_memory, v, once)
        wide = wide_dtype(shared.k)
        self._shared, self._r_dtype = shared, shared.r.dtype if r_once else wide
        self._r: Tensor | None = None
        self.wants_r = r is not None
        # r_w_bias, r_r_bias, r_s_bias, seg_embed[1] - seg_embed[0]: (4, N, D)
        self.vectors = shared.r.new_zeros(4, *shared.r.shape[2:], dtype=wide)

    @property
    def r(self) -> Tensor:
        """(G, N, rows of r, D), made when first needed: after the peak of memory of a pass."""
        if self._r is None:
            groups, _, heads, dim = self._shared.r.shape
            rows = self._shared.table
            self._r = self._shared.r.new_zeros(groups, heads, rows, dim, dtype=self._r_dtype)
        return self._r


def rel_attention_backward(
    keys: Keys,
    streams: Sequence[Queries],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    grad_outs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    deterministic: bool,
) -> None:
    """As :func:`xlnet_fast.kernels.sdpa.rel_attention.rel_attention_backward`."""
    shared_grads = grads[len(streams) :]
    shared = Shared(keys, streams[0].mask.key_padding)
    work = []
    for queries in streams:
        stream = Stream(keys, shared, queries)
        size = budget.BACKWARD_TENSORS * queries.q.element_size()
        work.append((stream, list(stream.blocks(size))))
    stream, blocks = work[0]
    once = len(work) == 1 and all(
        block.i1 - block.i0 == stream.queries and block.width == shared.count for block in blocks
    )
    r_once = once and len(blocks) == shared.r.shape[0]
    r_once = r_once and all(len(list(stream.parts(block))) == 1 for block in blocks)
    totals = _Totals(shared, shared_grads, once, r_once)
    for (stream, blocks), grad_out, grad_q in zip(work, grad_outs, grads, strict=False):
        if stream.positions is not None:
            grad_out = grad_out.masked_fill((stream.positions < 0)[:, :, None, None], 0)
        for block in blocks:
            _block_backward(stream, block, grad_out, totals, grad_q)
    totals.k.write()
    totals.v.write()
    _write_shared(totals, shared_grads)


def _block_backward(
    stream: Stream, block: Block, grad_out: Tensor, totals: _Totals, grad_q: Tensor | None
) -> None:
    """One block's gradients of q, and its part of those of keys, values, r and vectors."""
    shared, differ = stream.shared, stream.differ(block)
    probabilities = stream.probabilities(block, differ).flatten(0, 1)
    keep = stream.keep(block)
    keep = None if keep is None else keep.flatten(0, 1)
    d_out = merge(grad_out[block.index])
    if totals.v.wanted:
        dropped = probabilities if keep is None else probabilities * keep
        totals.v.add(block, dropped.transpose(1, 2), d_out, shared.factor)
        del dropped
    d_scores = torch.empty_like(probabilities)
    v = of_keys(shared.v, block)
    d_scores.baddbmm_(d_out, v.transpose(1, 2), beta=0, alpha=shared.factor)
    if keep is not None:
        d_scores *= keep
    del keep, v
    softmax_backward_(d_scores, probabilities)
    d_segment = None  # (b, N, rows, 1)
    if differ is not None:
        shape = (block.b1 - block.b0, stream.heads, *probabilities.shape[1:])
        differing = torch.mul(d_scores.view(shape), differ[:, None], out=probabilities.view(shape))
        d_segment = differing.sum(-1, keepdim=True, dtype=wide_dtype(grad_out)) * shared.scale
        del differing
    del probabilities
    rows, b = block.i1 - block.i0, block.b1 - block.b0
    dq = d_scores.new_empty(2, rows, b, stream.heads, stream.dim)  # of q_w and of q_r
    k = of_keys(shared.k, block)
    add_product(dq[0].transpose(0, 1), d_scores, k, shared.scale)
    if totals.k.wanted:
        q_w = merge(stream.biased(block, stream.r_w_bias).transpose(0, 1))
        totals.k.add(block, d_scores.transpose(1, 2), q_w, shared.scale)
    _position_grads(stream, block, d_scores, dq[1], totals)
    del d_scores
    _query_grads(stream, block, dq, d_segment, totals.vectors, grad_q)


def _position_grads(
    stream: Stream, block: Block, d_scores: Tensor, dq_r: Tensor, totals: _Totals
) -> None:
    """A block's gradient of the position scores to dq_r (rows, b, N, D) and to that of r."""
    shared, b = stream.shared, block.b1 - block.b0
    d_scores = d_scores.view(b, stream.heads, -1, block.width)
    q_r = stream.biased(block, stream.r_r_bias) if totals.wants_r else None
    for part in stream.parts(block):
        d_table = d_scores.new_zeros(stream.heads, (part.a1 - part.a0) * b, part.width)
        d_part = d_scores[:, :, part.a0 : part.a1]
        if stream.positions is None:
            stream.skewed(d_table, block, part).copy_(d_part)
        else:
            by_row(d_table, part).scatter_(-1, stream.shift_index(block, part), d_part)
        target = stream.of_part(dq_r, part)  # a view: dq_r is contiguous
        target.baddbmm_(d_table, stream.window(block, part), beta=0, alpha=shared.scale)
        if q_r is not None:
            rows = totals.r[block.group].narrow(1, part.start, part.width)
            _accumulate(rows, d_table.transpose(1, 2), stream.of_part(q_r, part), shared.scale)
        del d_table, d_part  # before the next is made


def _accumulate(total: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """total += alpha a @ b, all batches of matrices, total possibly wider than a."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b, alpha=alpha)
    else:
        total.add_(torch.bmm(a, b), alpha=alpha)


def _query_grads(
    stream: Stream,
    block: Block,
    dq: Tensor,
    d_segment: Tensor | None,
    vectors: Tensor,
    grad_q: Tensor | None,
) -> None:
    """From dq (2, rows, b, N, D), of q_w and q_r, to the gradients of q and of the vectors."""
    shared, wide = stream.shared, vectors.dtype
    vectors[:2] += dq.sum((1, 2), dtype=wide)
    total = dq.sum(0, dtype=wide)
    if d_segment is not None and shared.difference is not None and stream.r_s_bias is not None:
        of_rows = d_segment.permute(2, 0, 1, 3)  # (rows, b, N, 1)
        difference = shared.difference.to(wide)
        # Sums of differences that cancel: in fp32 or wider from the scores on.
        vectors[2].addcmul_(of_rows.sum((0, 1)), difference)
        vectors[3] += (of_rows * stream.biased(block, stream.r_s_bias)).sum((0, 1))
        total.addcmul_(of_rows, difference)
    if grad_q is not None:
        grad_q[block.index] = total.transpose(0, 1)


def _write_shared(totals: _Totals, grads: Sequence[Tensor | None]) -> None:
    """``totals`` into the gradients of r and of the vectors."""
    r, *vectors, seg_embed = grads[4:]
    if r is not None:
        used = min(r.shape[1], totals.r.shape[2])
        r[:, :used] = totals.r[:, :, :used].transpose(1, 2)
        if used < r.shape[1]:
            r[:, used:] = 0
    for grad, value in zip(vectors, totals.vectors[:3], strict=True):
        if grad is not None:
            grad.copy_(value)
    if seg_embed is not None:
        seg_embed.copy_(torch.stack([-totals.vectors[3], totals.vectors[3]]))
