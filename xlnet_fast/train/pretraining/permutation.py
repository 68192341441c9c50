"""Which tokens are predicted, in which order, and who sees whom: XLNet's permutation objective.

Source: "XLNet: Generalized Autoregressive Pretraining", sections 2.2, 2.3 and 2.6, and the choices
that only the original's code tells (zihangdai/xlnet, ``data_utils.py``). Everything here is numpy
over all rows at once, and a pure function of the uniform numbers it is given.

Letters: R rows, L tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families.xlnet.inputs import dense_mapping

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CONTEXT_RANK = -1


@dataclass(frozen=True)
class SpanSampling:
    """How spans of targets are drawn.

    Attributes:
        mask_alpha, mask_beta: a span of n units has ``n * mask_alpha // mask_beta`` tokens around
            it, so spans cover about ``mask_beta`` of ``mask_alpha + mask_beta`` tokens.
        max_span: a span has 1 to this many units, n with a probability proportional to 1/n.
        whole_words: a unit is a word. The original's search for the end of a span looks at the
            piece at its beginning, so its unit is one piece; that is the default.

    Raises:
        ArgumentError: a value that leaves no context, or no span.
    """

    mask_alpha: int = 6
    mask_beta: int = 1
    max_span: int = 5
    whole_words: bool = False

    def __post_init__(self) -> None:
        if self.mask_beta < 1 or self.mask_alpha < self.mask_beta:
            raise ArgumentError(
                f"mask_alpha is {self.mask_alpha} and mask_beta {self.mask_beta}; expected "
                "mask_alpha >= mask_beta >= 1 (mask_alpha tokens around mask_beta predicted ones)"
            )
        if self.max_span < 1:
            raise ArgumentError(f"max_span is {self.max_span}, expected at least 1")


def draws_for_targets(length: int, goal: int) -> int:
    """How many uniform numbers :func:`sample_targets` takes for a row of ``length`` tokens."""
    return 2 * goal + length


def sample_targets(
    starts: Bools, candidates: Bools, goals: Ints, uniforms: Floats, spans: SpanSampling
) -> Bools:
    """Draw the targets of each row: spans at random offsets, topped up at random.

    A span begins at the first word start at or behind its offset. The walk ends where the goal is
    reached or the row is used up; what is missing then is drawn from all candidates alike. The
    last span is cut so that the goal is never exceeded.

    Args:
        starts: (R, L), True where a piece begins a word.
        candidates: (R, L), True where a token may begin a span or be drawn to top up; False for
            padding. What lies between candidates may still be inside a span.
        goals: (R,) how many targets a row shall have.
        uniforms: (R, ``draws_for_targets(L, goals.max())``) in [0, 1).

    Returns:
        (R, L), True for targets; exactly ``goals`` in each row.

    Raises:
        ArgumentError: a goal that a row's candidates cannot fill.
    """
    rows, length = starts.shape
    short = np.flatnonzero(goals > candidates.sum(1))
    if short.size:
        row = int(short[0])
        raise ArgumentError(
            f"row {row} has {int(candidates[row].sum())} tokens that may be predicted, "
            f"but {int(goals[row])} targets were asked for"
        )
    filled = candidates.any(1)
    first = np.where(filled, candidates.argmax(1), length)
    past = np.where(filled, length - candidates[:, ::-1].argmax(1), length)  # behind the last
    words = _Words(starts & candidates, past)
    chance = np.cumsum(1.0 / np.arange(1, spans.max_span + 1))
    chance /= chance[-1]

    edges = np.zeros((rows, length + 1), np.int64)  # +1 where a span begins, -1 behind its end
    current, left = first.copy(), goals.astype(np.int64)
    active = np.flatnonzero(left > 0)
    for step in range(int(goals.max(initial=0))):
        if not active.size:
            break
        draw = uniforms[active, 2 * step : 2 * step + 2]
        # The largest double below 1 still finds the last entry.
        units = np.minimum(np.searchsorted(chance, draw[:, 0], "right") + 1, left[active])
        context = units * spans.mask_alpha // spans.mask_beta
        before = (draw[:, 1] * context).astype(np.int64)
        begin = words.next_start(active, current[active] + before)
        end = words.word_end(active, begin, units) if spans.whole_words else begin + units
        # As the original, a span that reaches the end of the row ends the walk and is dropped.
        inside = (begin < past[active]) & (end < past[active])
        active, begin, end = active[inside], begin[inside], end[inside]
        current[active] = end + (context - before)[inside]
        end = np.minimum(end, begin + left[active])
        edges[active, begin] += 1
        edges[active, end] -= 1
        left[active] -= end - begin
        active = active[(left[active] > 0) & (current[active] < past[active])]
    targets = np.cumsum(edges[:, :length], axis=1) > 0
    return targets | _top_up(candidates & ~targets, left, uniforms[:, -length:])


class _Words:
    """Where words begin, as tables: one look-up finds the next word for all rows."""

    def __init__(self, starts: Bools, past: Ints) -> None:
        rows, length = starts.shape
        self.length = length
        places = np.where(starts, np.arange(length), length)
        following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
        self.following = np.concatenate([following, np.full((rows, 1), length)], axis=1)
        self.number = np.cumsum(starts, axis=1) - 1  # of the word that a position lies in
        self.position = np.sort(places, axis=1)  # of the n-th word; length behind the last
        self.past = past

    def next_start(self, rows: Ints, positions: Ints) -> Ints:
        """The first word start at or behind each position; length where there is none."""
        found: Ints = self.following[rows, np.minimum(positions, self.length)]
        return found

    def word_end(self, rows: Ints, begin: Ints, words: Ints) -> Ints:
        """Where the word begins that follows ``words`` words from ``begin``."""
        known = np.minimum(begin, self.length - 1)
        number = self.number[rows, known] + words
        inside = number < self.length
        found = self.position[rows, np.minimum(number, self.length - 1)]
        return np.where(inside & (found < self.length), found, self.past[rows])


def _top_up(candidates: Bools, missing: Ints, uniforms: Floats) -> Bools:
    """(R, L) with ``missing`` of each row's candidates, all subsets equally likely."""
    added = np.zeros_like(candidates)
    rows = np.flatnonzero(missing)
    if rows.size:
        order = np.argsort(np.where(candidates[rows], uniforms[rows], 2.0), axis=1)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)
        added[rows] = place < missing[rows, None]
    return added


def block_order(uniforms: Floats, length: int) -> Ints:
    """The factorisation order: one shuffle of a block, used for all blocks, blocks in order.

    Args:
        uniforms: (R, ``perm_size``) in [0, 1).
        length: L; the last block may be shorter, whose order then has gaps.

    Returns:
        (R, L) distinct integers from 0; a token is predicted after those with smaller ones.
    """
    rows, size = uniforms.shape
    shuffled = np.empty((rows, size), np.int64)
    ranks = np.arange(size)[None]
    np.put_along_axis(shuffled, np.argsort(uniforms, axis=1), ranks, axis=1)
    position = np.arange(length)
    order: Ints = shuffled[:, position % size] + position // size * size
    return order


def visibility_ranks(
    order: Ints, targets: Bools, functional: Bools, base: int = CONTEXT_RANK
) -> tuple[Ints, Ints]:
    """Turn an order into two ranks per token: token j is visible to i iff rank_q[i] > rank_k[j].

    Context tokens are seen by all and see only context. Targets see context and what comes before
    them in the order, not themselves. <sep> and <cls> are no targets: they see themselves too.

    Args:
        order: (R, L) from :func:`block_order`.
        targets: (R, L), True for predicted tokens; functional tokens do not count as such.
        functional: (R, L), True for <sep> and <cls>.
        base: rank of context tokens. Tokens of two parts see each other by their bases: all of a
            part with a higher base see all of the part below it, see :func:`next_base`.

    Returns:
        rank_q, rank_k, (R, L) each.
    """
    ordered = targets | functional
    rank_k = np.where(ordered, order + base + 1, base)
    rank_q = np.where(functional, order + base + 2, np.where(targets, order, 0) + base + 1)
    return rank_q, rank_k


def next_base(base: int, length: int, perm_size: int) -> int:
    """The lowest base that hides a part from the one before it, which has L = ``length`` tokens.

    All of the earlier part's ``rank_q`` are at most ``base + 1 + (highest order) + 1``.
    """
    blocks = -(-length // perm_size)
    return base + 1 + blocks * perm_size


def dense_masks(
    permutation_ranks: tuple[Tensor, Tensor], target_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Expand the compact form into the two dense tensors of Hugging Face's XLNet.

    Args:
        permutation_ranks: rank_q and rank_k, (B, L) integers each.
        target_positions: (B, I') integers, negative for no prediction.

    Returns:
        perm_mask: (B, L, L) fp32, 1 where token i must not see token j.
        target_mapping: (B, I', L) fp32, one-hot rows, zero rows for no prediction.
    """
    rank_q, rank_k = permutation_ranks
    perm_mask = (rank_q[:, :, None] <= rank_k[:, None, :]).float()
    return perm_mask, dense_mapping(target_positions, rank_q.shape[1])


def compact_positions(targets: Bools, count: int) -> Ints:
    """(R, count) positions of the targets in order, -1 behind the last."""
    rows, columns = np.nonzero(targets)
    behind = np.cumsum(targets.sum(1)) - targets.sum(1)
    positions = np.full((len(targets), count), -1)
    positions[rows, np.arange(len(rows)) - behind[rows]] = columns
    return positions
