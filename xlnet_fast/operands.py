"""What a call is made of, as small typed objects that the functions of a backend take.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M current keys, D head dim,
G groups of r, P rows of r.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xlnet_fast.masks import AttentionMask


@dataclass(frozen=True)
class Keys:
    """What all query rows of a call share.

    Attributes:
        k, v: (B, J, N, D), memory first; (B, L, N, D) where the memory is apart.
        k_memory, v_memory: (B, M, N, D), keys and values of the memory, or None: then k and v hold
            all J keys.
        r: (G, P, N, D); batch element b reads group b * G // B.
        r_w_bias, r_r_bias: (N, D).
        r_s_bias, seg_embed: (N, D) and (2, N, D), or None without segments.
        segments: (B, J) integers, or None.
        memory_length: M.
        scale: of the scores.
        dropout_p: probability of dropping an attention probability.
    """

    k: Tensor
    v: Tensor
    k_memory: Tensor | None
    v_memory: Tensor | None
    r: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    r_s_bias: Tensor | None
    seg_embed: Tensor | None
    segments: Tensor | None
    memory_length: int
    scale: float
    dropout_p: float = 0.0

    @property
    def count(self) -> int:
        """J, the number of keys."""
        apart = 0 if self.k_memory is None else self.k_memory.shape[1]
        return self.k.shape[1] + apart

    @property
    def current(self) -> int:
        """L, the number of keys of the current segment."""
        return self.count - self.memory_length


@dataclass(frozen=True)
class Queries:
    """One stream's query rows and what belongs to them.

    Attributes:
        q: (B, I, N, D) queries without biases.
        segments: integers, one a row, or None without segments.
        mask: which keys its rows see.
        positions: (B, I) position of each row, negative for an absent one, or None: row i sits at
            position i.
        seed: one int64 element, or None without dropout.
        by_position: where ``segments``, ``mask.rank_q`` and ``mask.bits`` have a row for each of
            the L positions and row i takes that of ``positions[i]``; otherwise a row for each
            query row.
    """

    q: Tensor
    segments: Tensor | None
    mask: AttentionMask
    positions: Tensor | None
    seed: Tensor | None
    by_position: bool = False


@dataclass(frozen=True)
class SoftmaxInputs:
    """What attention probabilities are made of; the formula is in ``ops.masked_softmax``.

    Attributes:
        scores: (B, N, I, J) content scores, unscaled.
        position_scores: (B, N, I, P), one per row of r, read at p = j - pos_i + L; or None.
        segment_scores: (B, N, I), added where the segments of query and key differ; or None.
        segments_q, segments_k: (B, I) and (B, J) integers, given with ``segment_scores``.
        mask: hidden keys.
        positions: (B, I) position of each row, or None: row i sits at position i.
        memory_length: M.
        scale: of the sum of the three scores.
        dropout_p: probability of dropping an attention probability.
        seed: one int64 element, or None without dropout.
    """

    scores: Tensor
    position_scores: Tensor | None
    segment_scores: Tensor | None
    segments_q: Tensor | None
    segments_k: Tensor | None
    mask: AttentionMask
    positions: Tensor | None
    memory_length: int
    scale: float
    dropout_p: float = 0.0
    seed: Tensor | None = None

    @property
    def terms(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The three scores, which are what has gradients."""
        return self.scores, self.position_scores, self.segment_scores

    @property
    def current(self) -> int:
        """L, the number of keys of the current segment."""
        return self.scores.shape[3] - self.memory_length

    @property
    def table(self) -> int:
        """P, the number of columns of ``position_scores``; 0 without."""
        return 0 if self.position_scores is None else self.position_scores.shape[-1]

    def expected_shapes(self) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
        """By name each tensor there is beside ``scores``, and the shape that goes with theirs.

        The mask checks its own, and a seed has none.
        """
        batch, heads, rows, keys = self.scores.shape
        shapes = {
            "position_scores": (self.position_scores, (batch, heads, rows, self.table)),
            "segment_scores": (self.segment_scores, (batch, heads, rows)),
            "segments_q": (self.segments_q, (batch, rows)),
            "segments_k": (self.segments_k, (batch, keys)),
            "positions": (self.positions, (batch, rows)),
        }
        return {name: (x, shape) for name, (x, shape) in shapes.items() if x is not None}
