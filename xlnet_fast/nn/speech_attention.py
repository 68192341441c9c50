"""Attention of speech encoders: frames among frames, with relative positions, without segments."""

from __future__ import annotations

from torch import Tensor

from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import rel_attention
from xlnet_fast.philox import draw_seed

MOST_HEAD_DIM = 256


def attend_frames(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    bias_u: Tensor,
    bias_v: Tensor,
    *,
    mask: AttentionMask | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale * ((q + u) k + (q + v) r)) v over all frames.

    Args:
        q: (B, I, N * D) or (B, I, N, D). k, v: the same with J for I, those of a cache before those
            of the I frames. Any strides.
        table: (1 or B, 2J - 1, N, D), rows of the distances J - 1 .. 1 - J (HF's Conformers), or
            its first I + J - 1 rows; with one head, N = 1, its rows are those of all. It is cast to
            the dtype of q, as the biases are.
        bias_u, bias_v: (N, D), the content and the position bias.
        mask, scale, backend: as in :func:`ops.rel_attention`.
        dropout_p: of the probabilities; its seed is drawn here.

    Returns:
        (B, I, N * D).
    """
    heads, dim = bias_u.shape
    q, k, v = (x if x.dim() == 4 else x.unflatten(-1, (heads, dim)) for x in (q, k, v))
    seed = draw_seed(q.device) if dropout_p else None
    attended = rel_attention(
        q, k, v, table.to(q.dtype), bias_u.to(q.dtype), bias_v.to(q.dtype), r_start=1,
        mask=mask, scale=scale, dropout_p=dropout_p, seed=seed, backend=backend,
    )  # fmt: skip
    return attended.flatten(2)
