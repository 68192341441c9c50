"""Attention by content alone: PyTorch's own, or our op where that is the better.

Without positions our op computes a third more than it must, with a table of zeros that takes no
memory. It is taken all the same for training on a CPU: PyTorch's gradients of queries and keys are
the less exact there, and where probabilities are dropped it makes them all and draws a number for
each on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.ops import rel_attention
from xlnet_fast.philox import draw_seed
from xlnet_fast.transforms import can_look


@dataclass(frozen=True)
class ContentMask:
    """What the queries see.

    Attributes:
        shown: (B, I or 1, J) bool, True for keys that a query sees, or None: all. A blind row has
            all keys here.
        blind: (B, I or 1) bool, rows that see no key, or None: there are none. Their probabilities
            are uniform, whatever the scores.
        causal: query i sees the keys up to i, I = J; ``shown`` is None then.
    """

    shown: Tensor | None = None
    blind: Tensor | None = None
    causal: bool = False


def content_mask(shown: Tensor) -> ContentMask:
    """What a dense mask shows.

    Args:
        shown: (B, I or 1, J) bool. Its values are read on a CPU alone: a GPU would be waited for.
    """
    blind = ~shown.any(-1)
    if shown.device.type != "cpu" or not can_look(shown):
        return ContentMask(shown | blind[..., None], blind)
    if bool(shown.all()):
        return ContentMask()
    if shown.shape[1] == shown.shape[2] and torch.equal(shown, torch.ones_like(shown).tril()):
        return ContentMask(causal=True)
    if bool(blind.any()):
        return ContentMask(shown | blind[..., None], blind)
    return ContentMask(shown)


def attend_contents(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: ContentMask,
    *,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k / sqrt(D)) v.

    Args:
        q: (B, N, I, D). k, v: (B, N, J, D), J >= I. Any strides.
        dropout_p: of the probabilities.
        backend: "auto", or that of :func:`ops.rel_attention`, which is then taken.

    Returns:
        (B, I, N * D).
    """
    if mask.blind is not None:  # equal scores, and no gradient through them
        q = q * ~mask.blind[:, None, :, None]
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if backend != "auto" or (q.device.type == "cpu" and (trains or dropout_p)):
        return _by_op(q, k, v, mask, dropout_p, backend)
    shown = None if mask.shown is None else mask.shown[:, None]
    attended = F.scaled_dot_product_attention(
        q, k, v, shown, dropout_p=dropout_p, is_causal=mask.causal
    )
    return attended.transpose(1, 2).flatten(2)


def _by_op(
    q: Tensor, k: Tensor, v: Tensor, mask: ContentMask, dropout_p: float, backend: str
) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    _, queries, heads, dim = q.shape
    zero = q.new_zeros(1, 1, 1, 1)
    bias = zero[0, 0].expand(heads, dim)
    seed = draw_seed(q.device) if dropout_p else None
    attended = rel_attention(
        q, k, v, zero.expand(1, queries + k.shape[1], heads, dim), bias, bias,
        mask=_op_mask(mask, queries), dropout_p=dropout_p, seed=seed, backend=backend,
    )  # fmt: skip
    return attended.flatten(2)


def _op_mask(mask: ContentMask, queries: int) -> AttentionMask | None:
    if mask.shown is None:
        return AttentionMask(causal=True) if mask.causal else None
    if mask.shown.shape[1] == 1:
        return AttentionMask(key_padding=~mask.shown[:, 0])
    return AttentionMask(bits=pack_bits(~mask.shown.expand(-1, queries, -1)))
