"""Attention probabilities as an op, for callers who need them (``output_attentions``)."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast import reference
from xlnet_fast.errors import ShapeError
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import _contracts as _contracts  # registers the ops
from xlnet_fast.ops._dispatch import choose, request_for, spelled
from xlnet_fast.ops._validation import (
    check_device,
    check_dropout,
    check_float,
    check_integers,
    check_mask,
    check_memory_length,
    check_positions,
    check_same,
    check_shape,
    check_table,
    check_tensor,
)
from xlnet_fast.transforms import can_look


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
    backend: str = "auto",
) -> Tensor:
    """``dropout(softmax(scale * (scores + shifted position + segment) + mask))``, fp32 inside.

    Args:
        scores: (B, N, I, J) content scores, unscaled.
        position_scores: (B, N, I, P), one per row of r; read at p = j - pos_i + L, L = J - M.
            P >= L + J, or P >= J + 1 when ``mask.causal``.
        segment_scores: (B, N, I), added where the segments of query and key differ; needs
            ``segments_q`` (B, I) and ``segments_k`` (B, J), int32 or int64.
        mask: hidden keys; default none.
        positions: (B, I) position of each query row; default row i sits at i.
        memory_length: M, leading keys that are memory; default J - I.
        scale, dropout_p: factors; ``seed`` is an int64 tensor of one element.
        backend: "auto" or a backend's name.

    Returns:
        (B, N, I, J) probabilities in the dtype of ``scores``. A row whose keys are all hidden is
        uniform.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
        BackendUnavailable: the named backend cannot run here.
    """
    check_tensor("scores", scores, 4, "B, N, I, J")
    check_float("scores", scores)
    batch, heads, queries, keys = scores.shape
    if memory_length is None:
        memory_length = keys - queries
    check_memory_length("scores", queries, keys, memory_length, positions is not None)
    mask = check_mask(mask, batch, queries, keys, "scores", scores)
    if position_scores is not None:
        check_tensor("position_scores", position_scores, 4, "B, N, I, P")
        table = position_scores.shape[3]
        check_shape(
            "position_scores", position_scores, (batch, heads, queries, table), "B, N, I, P"
        )
        check_table("position_scores", table, keys, memory_length, mask.causal)
    check_shape("segment_scores", segment_scores, (batch, heads, queries), "B, N, I")
    check_same(
        "scores", scores, {"position_scores": position_scores, "segment_scores": segment_scores}
    )
    if (segment_scores is None) != (segments_q is None) or (segments_q is None) != (
        segments_k is None
    ):
        raise ShapeError("segment_scores, segments_q and segments_k must be given together")
    rows = {"segments_q": (segments_q, queries, "B, I"), "segments_k": (segments_k, keys, "B, J")}
    rows["positions"] = (positions, queries, "B, I")
    for name, (x, length, letters) in rows.items():
        check_shape(name, x, (batch, length), letters)
        check_integers(name, x)
        check_device(name, x, "scores", scores)
    check_dropout(dropout_p, seed)
    operands = (scores, position_scores, segment_scores)
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in operands
    )
    has = {
        "padding": mask.key_padding is not None,
        "segments": segment_scores is not None,
        "dropout": dropout_p > 0.0,
        "causal": mask.causal,
        "ranks": mask.rank_q is not None,
        "bits": mask.bits is not None,
        "positions": positions is not None,
        "window": mask.window is not None,
    }
    features = [name for name, there in has.items() if there]
    request = request_for(
        "masked_softmax", scores, needs_grad=needs_grad, features=features, backend=backend
    )
    choice = choose(request, backend)
    if choice.backend == "reference":
        if positions is not None and can_look(positions):
            check_positions(positions, keys - memory_length)
        return reference.masked_softmax(
            scores,
            position_scores=position_scores,
            segment_scores=segment_scores,
            segments_q=segments_q,
            segments_k=segments_k,
            mask=mask,
            positions=positions,
            memory_length=memory_length,
            scale=scale,
            dropout_p=dropout_p,
            seed=seed,
        )
    result: Tensor = torch.ops.xlnet_fast.masked_softmax(
        scores, position_scores, segment_scores, segments_q, segments_k,
        *mask.tensors, positions, seed, *mask.flags, memory_length, scale, dropout_p,
        spelled(choice, backend),
    )  # fmt: skip
    return result
