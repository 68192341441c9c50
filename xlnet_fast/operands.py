"""What a call is made of, as small typed objects that the functions of a backend take.

Letters: B batch, N heads, I query rows, J keys, M memory keys, L = J - M current keys, D head dim,
G groups of r, P rows of r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels of this package compute with; plain PyTorch takes every floating dtype."""


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
        r_start: row 0 of r encodes the distance J - r_start: that of p is row p - r_start.
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
    r_start: int = 0

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

    def check(self) -> None:
        """What a caller past the public op could get wrong and memory would not survive.

        Raises:
            ArgumentError: a dtype, device or value that no kernel takes. ShapeError: shapes that do
                not agree.
        """
        scores, seed, dropout_p = self.scores, self.seed, self.dropout_p
        if scores.dtype not in COMPILED_DTYPES:
            raise ArgumentError(
                f"scores has dtype {scores.dtype}; the kernel takes float32, bfloat16 and float16"
            )
        if scores.dim() != 4:
            raise ShapeError(f"scores has shape {tuple(scores.shape)}, expected (B, N, I, J)")
        batch, _, rows, keys = scores.shape
        if not 0 <= self.memory_length <= keys:
            raise ShapeError(f"memory_length is {self.memory_length}, expected 0 to J = {keys}")
        if dropout_p > 0.0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1):
            raise ArgumentError(f"dropout_p {dropout_p} needs a seed of one int64, got {seed!r}")
        self.mask.validate(batch, rows, keys)
        segments = (self.segment_scores, self.segments_q, self.segments_k)
        if len({x is None for x in segments}) != 1:
            raise ArgumentError("segment_scores, segments_q, segments_k: give all three or none")
        for name, (x, shape) in self.expected_shapes().items():
            if tuple(x.shape) != shape:
                raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
            if name in ("position_scores", "segment_scores") and x.dtype != scores.dtype:
                raise ArgumentError(
                    f"{name} has dtype {x.dtype}, expected {scores.dtype} as scores"
                )
        parts = zip(("key_padding", "rank_q", "rank_k", "bits"), self.mask.tensors, strict=True)
        placed = {name: x for name, (x, _) in self.expected_shapes().items()}
        placed |= {f"mask.{name}": part for name, part in parts if part is not None}
        if dropout_p > 0.0 and seed is not None:
            placed["seed"] = seed
        for name, there in placed.items():
            if there.device != scores.device:
                raise ArgumentError(
                    f"{name} is on {there.device}, expected {scores.device} as scores"
                )


def check_like(name: str, x: Tensor, like: Tensor) -> None:
    """``x`` is as large as ``like``, of its dtype and on its device.

    Raises:
        ShapeError, ArgumentError: name what differs.
    """
    if x.shape != like.shape:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {tuple(like.shape)}")
    if x.dtype != like.dtype:
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected {like.dtype}")
    if x.device != like.device:
        raise ArgumentError(f"{name} is on {x.device}, expected {like.device}")


def check_gradients(inputs: SoftmaxInputs, grads: Sequence[Tensor]) -> None:
    """Each of the scores that is given has a contiguous gradient like it.

    Raises:
        ShapeError, ArgumentError: name the gradient by its number.
    """
    for number, (like, grad) in enumerate(zip(inputs.terms, grads, strict=True)):
        if like is None:
            continue
        check_like(f"grads[{number}]", grad, like)
        if not grad.is_contiguous():
            raise ShapeError(f"grads[{number}] has strides {grad.stride()}, expected contiguous")


def rows_in_order(x: Tensor) -> Tensor:
    """``x`` if the elements of a row follow each other, else a copy in which they do."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_memories(
    hidden: Sequence[Tensor], memory: Sequence[Tensor] | None, start: int, kept: int, out: Tensor
) -> None:
    """Arguments of a backend's ``concat_memory_forward`` are what its kernels may be given.

    Raises:
        ArgumentError: a dtype, device or number. ShapeError: shapes that do not agree.
    """
    if not hidden or (memory is not None and len(memory) != len(hidden)):
        given = "no" if memory is None else len(memory)
        raise ArgumentError(f"{given} tensors of memory for {len(hidden)} layers")
    groups = {"hidden": hidden} if memory is None else {"hidden": hidden, "memory": memory}
    for name, group in groups.items():
        for number, x in enumerate(group):
            if x.shape != group[0].shape or x.shape[1:] != hidden[0].shape[1:] or x.dim() != 3:
                raise ShapeError(f"{name}[{number}] has shape {tuple(x.shape)}, unlike the others")
            if x.dtype != group[0].dtype or not x.is_floating_point() or x.device != out.device:
                raise ArgumentError(f"{name}[{number}] is {x.dtype} on {x.device}, unlike others")
    if out.dtype != hidden[0].dtype:
        raise ArgumentError(f"out has dtype {out.dtype}, expected hidden's {hidden[0].dtype}")
    rows = kept + (0 if memory is None else memory[0].shape[0])
    if not (0 <= kept <= hidden[0].shape[0] and 0 <= start <= rows):
        raise ArgumentError(f"start {start} and kept {kept} are outside of the {rows} rows")
    shape = (len(hidden), rows - start, *hidden[0].shape[1:])
    if tuple(out.shape) != shape or not out.is_contiguous():
        raise ShapeError(f"out has shape {tuple(out.shape)}, expected {shape}, contiguous")
