"""Relative attention in plain PyTorch for a GPU: as few launches as whole batches allow.

The formula is that of :mod:`xlnet_fast.kernels.sdpa.rel_attention`. Many small chunks, as a CPU's
caches want them, would leave a GPU waiting for its next launch; here one block holds all rows of as
many batch elements as memory allows, and is

    S = skew(q_r r^T) + c [seg differ];   S += q_w k^T;   S[hidden] = lowest
    P = softmax(S);   o = P v

Nothing is packed: in XLNet's layout, (S, B, N, D) in memory, batch and heads are one dimension of a
batched GEMM as they lie, and so are rows and batch for r. The position scores of a block are made
in ``PARTS`` parts, since those of so many rows are J + rows wide.

Where a window surely leaves every row a key (without padding, ranks and bits, or where rows see
themselves), blocks have so few rows that most keys are not among those that one of them sees.

Every product is scaled by its GEMM. A hidden score is overwritten after the products, so that fp16
needs no wider scores. Nothing here looks at a tensor's values: no synchronisation, and a CUDA graph
can capture it.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M, D head dim, G groups of
r, P rows of r; b and rows are those of a block, a the rows of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.kernels.sdpa import budget
from xlnet_fast.kernels.sdpa.blocks import Block, Part
from xlnet_fast.masks import HIDDEN_SCORE, take_rows
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.philox import keep_mask

LAUNCH_BOUND = 2**18
"""Scores of a block up to which its position scores are made at once: launches take the time."""
PARTS = 2
ALIGNMENT = 8
"""Columns of position scores are a multiple of it where r has rows to spare: 16 bytes in half
precision, without which a GEMM stores element by element."""


def suits(x: Tensor) -> bool:
    """Whether attention over operands like x is made here and not in chunks for a CPU's caches."""
    return x.device.type != "cpu"


class Shared:
    """Keys, values and positions of a call, for all of its streams.

    Keys and values are made ready when they are first needed: a block's position scores, which are
    the largest of all, come before them.
    """

    def __init__(self, keys: Keys, key_padding: Tensor | None) -> None:
        self._keys, self._key_padding = keys, key_padding
        self.count, self.current, self.memory = keys.count, keys.current, keys.memory_length
        self.scale, self.dropout_p, self.segments = keys.scale, keys.dropout_p, keys.segments
        self.factor = 1.0 / (1.0 - keys.dropout_p)
        self.r_start = keys.r_start
        self.table = self.current + self.count - self.r_start  # rows of r
        missing = self.table - keys.r.shape[1]
        # "uni" lacks the rows of hidden keys.
        self.r = F.pad(keys.r, (0, 0, 0, 0, 0, missing)) if missing > 0 else keys.r  # (G, P, N, D)
        self.difference = None  # (N, D)
        if keys.segments is not None and keys.seg_embed is not None:
            self.difference = keys.seg_embed[1] - keys.seg_embed[0]

    @cached_property
    def k(self) -> Tensor:
        """(B, J, N, D), mergeable."""
        return self._ready(self._keys.k_memory, self._keys.k)

    @cached_property
    def v(self) -> Tensor:
        """(B, J, N, D), mergeable."""
        return self._ready(self._keys.v_memory, self._keys.v)

    def _ready(self, memory: Tensor | None, current: Tensor) -> Tensor:
        """Of both sources, finite where padded."""
        return mergeable(_cleared(_joined(memory, current), self._key_padding))


class Stream:
    """One stream's queries, and the passes over one block of them."""

    def __init__(self, keys: Keys, shared: Shared, queries: Queries) -> None:
        self.q, self.positions, self.seed = queries.q, queries.positions, queries.seed
        self.batch, self.queries, self.heads, self.dim = queries.q.shape
        self.shared = shared
        self.r_w_bias, self.r_r_bias, self.r_s_bias = keys.r_w_bias, keys.r_r_bias, keys.r_s_bias
        self.mask, self.segments = queries.mask, queries.segments
        if queries.by_position and self.positions is not None:
            per_row = (self.segments, self.mask.rank_q, self.mask.bits)
            self.segments, rank_q, bits = (take_rows(x, self.positions) for x in per_row)
            self.mask = replace(self.mask, rank_q=rank_q, bits=bits)
        finite = torch.finfo(self.q.dtype)
        self.lowest = HIDDEN_SCORE if finite.min < HIDDEN_SCORE else finite.min

    def blocks(self, bytes_per_score: int) -> Iterator[Block]:
        """All blocks, each within one group of r and within the memory allowed."""
        groups = self.shared.r.shape[0]
        per_group = self.batch // groups
        scores = budget.scores(self.q.device, bytes_per_score)
        columns, rows = self.heads * self.shared.count, self.queries
        is_narrow = self._skips_keys()
        if is_narrow:
            span = max(1, len(self._span(0, 0)))
            few = isqrt(budget.FEWEST_SCORES // max(1, per_group * self.heads))
            rows = min(rows, max(span, few))
            columns = self.heads * min(self.shared.count, rows + span)
        elements = min(per_group, max(1, scores // max(1, columns * rows)))
        if elements == 1:
            rows = min(rows, max(1, scores // max(1, columns)))
        for group in range(groups):
            end = (group + 1) * per_group
            for b0 in range(group * per_group, end, elements):
                b1 = min(b0 + elements, end)
                for i0 in range(0, self.queries, rows):
                    i1 = min(i0 + rows, self.queries)
                    keys = self._span(i0, i1 - 1) if is_narrow else range(self.shared.count)
                    yield Block(group, b0, b1, i0, i1, keys.start, keys.stop)

    def _skips_keys(self) -> bool:
        """Whether keys beyond the window are left out: every row sees one that is not.

        Where rows have positions of their own, only a tensor could tell which.
        """
        return self.positions is None and self.mask.has_window and not self.mask.may_hide_all

    def _span(self, first: int, last: int) -> range:
        return self.mask.window_span(first, last, self.shared.count, self.shared.memory)

    def parts(self, block: Block) -> Iterator[Part]:
        """The parts in which a block's position scores are made."""
        rows, keys = block.i1 - block.i0, block.width
        scores = (block.b1 - block.b0) * self.heads * rows * keys
        step = rows if scores <= LAUNCH_BOUND else -(-rows // PARTS)
        for a0 in range(0, rows, step):
            a1 = min(a0 + step, rows)
            if self.positions is not None:
                yield Part(a0, a1, 0, self.shared.table)
                continue
            start, width = self._row_of_r(block, a1 - 1), keys + a1 - a0 - 1
            spare = -width % ALIGNMENT
            spare = spare if spare <= start else 0
            yield Part(a0, a1, start - spare, width + spare)

    def _row_of_r(self, block: Block, row: int) -> int:
        """The row of r that a block's row, running from 0, meets with the block's first key."""
        return block.j0 - block.i0 - row + self.shared.current - self.shared.r_start

    def biased(self, block: Block, bias: Tensor) -> Tensor:
        """q + bias of a block's rows, (rows, b, N, D) contiguous: as XLNet's hidden states lie."""
        q = self.q[block.index].transpose(0, 1)
        return torch.add(q, bias, out=q.new_empty(q.shape))

    def scores(self, block: Block, differ: Tensor | None) -> Tensor:
        """Scaled, masked scores of a block, (b, N, rows, w) contiguous."""
        shared, segment_score = self.shared, self._segment_score(block)
        q_r: Tensor | None = self.biased(block, self.r_r_bias)
        shape = (block.b1 - block.b0, self.heads, block.i1 - block.i0, block.width)
        scores = None
        for part in self.parts(block):
            assert q_r is not None
            rows = slice(part.a0, part.a1)
            table = self._table(block, part, q_r)  # the largest tensor beside the scores
            q_r = None if part.a1 == shape[2] else q_r
            scores = table.new_empty(shape) if scores is None else scores
            position = self._shifted(table, block, part)
            if segment_score is None or differ is None:
                scores[:, :, rows] = position
            else:
                of_rows = (differ[:, None, rows], segment_score[:, :, rows])
                torch.addcmul(position, *of_rows, out=scores[:, :, rows])
            del table, position
        assert scores is not None
        q_w = merge(self.biased(block, self.r_w_bias).transpose(0, 1))
        k = of_keys(shared.k, block)
        scores.flatten(0, 1).baddbmm_(q_w, k.transpose(1, 2), alpha=shared.scale)
        hidden = self._hidden(block)
        if hidden is not None:
            scores.masked_fill_(hidden[:, None], self.lowest)
        return scores

    def probabilities(self, block: Block, differ: Tensor | None) -> Tensor:
        """Before dropout, (b, N, rows, w)."""
        scores = self.scores(block, differ)
        return torch.softmax(scores, -1, out=scores)

    def keep(self, block: Block) -> Tensor | None:
        """Dropout's mask of a block, (b, N, rows, w) bool, or None without dropout."""
        if self.shared.dropout_p == 0.0 or self.seed is None:
            return None
        return keep_mask(
            self.seed, self.shared.dropout_p, self.batch, self.heads, (block.i0, block.i1),
            block.j1, device=self.q.device, batch_range=(block.b0, block.b1),
        )[..., block.j0 :]  # fmt: skip

    def differ(self, block: Block) -> Tensor | None:
        """Where the segments of row and key differ, (b, rows, w) bool; None without segments."""
        if self.segments is None or self.shared.segments is None or self.shared.difference is None:
            return None
        segments_k = self.shared.segments[block.elements, block.columns]
        differ: Tensor = self.segments[block.index][:, :, None] != segments_k[:, None, :]
        return differ

    def _segment_score(self, block: Block) -> Tensor | None:
        """What a differing segment adds, (b, N, rows, 1)."""
        if self.shared.difference is None or self.segments is None or self.r_s_bias is None:
            return None
        q_s = self.biased(block, self.r_s_bias)
        rows, b = q_s.shape[:2]
        score = q_s.new_empty(self.heads, rows * b, 1)
        flat, difference = q_s.flatten(0, 1).transpose(0, 1), self.shared.difference[:, :, None]
        score.baddbmm_(flat, difference, beta=0, alpha=self.shared.scale)
        return score.view(self.heads, rows, b, 1).permute(2, 0, 1, 3)

    def _hidden(self, block: Block) -> Tensor | None:
        """The block's hidden keys, (b or 1, 1 or rows, w) bool, or None."""
        mask, keys, memory = self.mask, self.shared.count, self.shared.memory
        if mask.hides_nothing:
            return None
        mask = mask.narrow_batch(block.b0, block.b1 - block.b0)
        part = (slice(block.i0, block.i1), block.columns)
        if self.positions is not None:
            given = self.positions[block.elements].to(torch.int64)
            return mask.hidden(given, keys, memory, *part)
        running = None
        if mask.causal or mask.has_window:
            running = torch.arange(self.queries, device=self.q.device)[None]
        hidden = replace(mask, see_self=False).hidden(running, keys, memory, *part)
        if mask.see_self and hidden is not None:
            padding = mask.key_padding is not None and mask.rank_q is None and mask.bits is None
            if padding and running is None:  # a view of the padding, the same for all rows
                hidden = hidden.repeat(1, block.i1 - block.i0, 1)
            hidden.diagonal(memory + block.i0 - block.j0, 1, 2).fill_(False)
        return hidden

    def window(self, block: Block, part: Part) -> Tensor:
        """The rows of r that a part meets, (N, width, D)."""
        return self.shared.r[block.group].narrow(0, part.start, part.width).transpose(0, 1)

    def of_part(self, x: Tensor, part: Part) -> Tensor:
        """Rows of a block's (rows, b, N, D) that multiply the same r, (N, a * b, D)."""
        return x[part.a0 : part.a1].flatten(0, 1).transpose(0, 1)

    def _table(self, block: Block, part: Part, q_r: Tensor) -> Tensor:
        """Scaled position scores of a part's rows with its rows of r, (N, a * b, width)."""
        table = q_r.new_empty(self.heads, (part.a1 - part.a0) * q_r.shape[1], part.width)
        window = self.window(block, part).transpose(1, 2)
        return table.baddbmm_(self.of_part(q_r, part), window, beta=0, alpha=self.shared.scale)

    def _shifted(self, table: Tensor, block: Block, part: Part) -> Tensor:
        """A table read at p, (b, N, a, w): a view for running positions, else a tensor."""
        if self.positions is None:
            return self.skewed(table, block, part)
        return by_row(table, part).gather(-1, self.shift_index(block, part))

    def skewed(self, table: Tensor, block: Block, part: Part) -> Tensor:
        """View (b, N, a, w) of a table (N, a * b, width), read at p = j - i + L."""
        b, rows, width = block.b1 - block.b0, part.a1 - part.a0, part.width
        strides = (width, rows * b * width, b * width - 1, 1)
        first = self._row_of_r(block, part.a0) - part.start
        return table.as_strided((b, self.heads, rows, block.width), strides, first)

    def shift_index(self, block: Block, part: Part) -> Tensor:
        """Rows of r for arbitrary positions, (b, N, a, J) int64; absent rows read row 0's."""
        assert self.positions is not None
        rows = slice(block.i0 + part.a0, block.i0 + part.a1)
        positions = self.positions[block.elements, rows].to(torch.int64)
        last = max(0, self.shared.current - 1)  # without current keys every row is absent
        key = torch.arange(self.shared.count, device=positions.device)
        index = key - positions.clamp(0, last)[:, :, None] + self.shared.current
        if self.shared.r_start > 0:
            index = (index - self.shared.r_start).clamp_(min=0)
        return index[:, None].expand(-1, self.heads, -1, -1)


def by_row(table: Tensor, part: Part) -> Tensor:
    """View (b, N, a, width) of a table (N, a * b, width)."""
    return table.unflatten(1, (part.a1 - part.a0, -1)).permute(2, 0, 1, 3)


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """As :func:`xlnet_fast.kernels.sdpa.rel_attention.rel_attention_forward`."""
    shared = Shared(keys, streams[0].mask.key_padding)
    for queries, out in zip(streams, outs, strict=True):
        stream = Stream(keys, shared, queries)
        for block in stream.blocks(budget.FORWARD_TENSORS * out.element_size()):
            probabilities = stream.probabilities(block, stream.differ(block))
            keep = stream.keep(block)
            if keep is not None:
                probabilities *= keep
            del keep
            v = of_keys(shared.v, block)
            add_product(out[block.index], probabilities.flatten(0, 1), v, shared.factor)
        if queries.positions is not None:
            out.masked_fill_((queries.positions < 0)[:, :, None, None], 0)


def _joined(memory: Tensor | None, current: Tensor) -> Tensor:
    """Keys or values (B, J, N, D) of both sources, in memory (J, B, N, D)."""
    if memory is None:
        return current
    return torch.cat([memory.transpose(0, 1), current.transpose(0, 1)]).transpose(0, 1)


def _cleared(x: Tensor, key_padding: Tensor | None) -> Tensor:
    """:func:`xlnet_fast.masks.clear_padded`, in the layout of x and without a third tensor."""
    if key_padding is None:
        return x
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    return torch.where(key_padding[:, :, None, None], finite, x, out=finite)


def is_mergeable(x: Tensor) -> bool:
    """Whether batch and heads of (B, S, N, D) lie as one dimension does."""
    one = x.shape[0] == 1 or x.shape[2] == 1
    return x.stride(3) == 1 and (one or x.stride(0) == x.shape[2] * x.stride(2))


def mergeable(x: Tensor) -> Tensor:
    """x (B, S, N, D), or a copy of it in which batch and heads can be merged."""
    return x if is_mergeable(x) else x.transpose(0, 1).contiguous().transpose(0, 1)


def merge(x: Tensor) -> Tensor:
    """(B, S, N, D) to (B * N, S, D), a view where :func:`is_mergeable`."""
    return x.transpose(1, 2).flatten(0, 1)


def of_keys(x: Tensor, block: Block) -> Tensor:
    """Of keys, values or their gradients (B, J, N, D), mergeable, a block's: (b * N, w, D)."""
    return merge(x[block.elements, block.columns])


def add_product(out: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """out (B, S, N, D) = alpha a (B * N, S, x) @ b (B * N, x, D), whatever the strides of out."""
    if is_mergeable(out):
        merge(out).baddbmm_(a, b, beta=0, alpha=alpha)
        return
    product = out.new_empty(a.shape[0], a.shape[1], b.shape[2])
    product.baddbmm_(a, b, beta=0, alpha=alpha)
    out.transpose(1, 2).copy_(product.view(-1, out.shape[2], *product.shape[1:]))
