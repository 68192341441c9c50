"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for our ops: their matrix products.

A product of (m, k) and (k, n) counts 2 m k n, as PyTorch's do. Counted is what the formulas ask
for (``docs/maths.md``), whatever a backend computes: no product that a backward pass makes again,
of the position scores one per query and key, of the segment term one per query. With S = B I N D
and T = S J, a stream's forward pass takes 6 T + 2 S, or 6 T without segments; the whole backward
pass takes twice that.

Hugging Face's code makes I + J position scores per query, four products for the segment term of
which one is with a one-hot tensor, and projects the position table once for each batch element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from xlnet_fast.ops._contracts import rel_attention as rel_attention  # defines the ops

Shape = Sequence[int]


def attention(rows: int, k: Shape, k_memory: Shape | None, segments: bool) -> int:
    """Of a forward pass over ``rows`` query rows of each batch element, those of all streams."""
    batch, keys, heads, dim = k
    keys += 0 if k_memory is None else k_memory[1]
    return 2 * batch * rows * heads * dim * (3 * keys + segments)


def attention_backward(
    wanted: Sequence[bool], rows: int, k: Shape, k_memory: Shape | None, segments: bool
) -> int:
    """Of the backward pass; ``wanted`` are all gradients but those of q, then q's: any of them."""
    *tensors, r, r_w_bias, r_r_bias, r_s_bias, seg_embed, q = wanted
    batch, current, heads, dim = k
    memory = 0 if k_memory is None else k_memory[1]
    d_k, d_v, d_k_memory, d_v_memory = tensors
    keys = current + memory
    scores = d_k or d_k_memory or r or r_w_bias or r_r_bias or r_s_bias or seg_embed or q
    terms = keys * (scores + (q or r_w_bias) + (q or r_r_bias) + r)
    terms += current * (d_k + d_v) + memory * (d_k_memory + d_v_memory)
    terms += segments * ((q or r_s_bias) + seg_embed)
    return 2 * batch * rows * heads * dim * terms


@register_flop_formula(torch.ops.xlnet_fast.rel_attention)
def _rel_attention(q: Shape, *args: Any, **_: Any) -> int:
    return attention(q[1], args[0], args[2], args[9] is not None)


@register_flop_formula(torch.ops.xlnet_fast.two_stream_attention)
def _two_stream_attention(q_h: Shape, q_g: Shape, *args: Any, **_: Any) -> int:
    return attention(q_h[1] + q_g[1], args[0], args[2], args[9] is not None)


@register_flop_formula(torch.ops.xlnet_fast.rel_attention_backward)
def _rel_attention_backward(wanted: Sequence[bool], *values: Any, **_: Any) -> int:
    q, *args = values[3:]
    ordered = [*wanted[1:], wanted[0]]
    return attention_backward(ordered, q[1], args[0], args[2], args[9] is not None)


@register_flop_formula(torch.ops.xlnet_fast.two_stream_attention_backward)
def _two_stream_attention_backward(wanted: Sequence[bool], *values: Any, **_: Any) -> int:
    q_h, q_g, *args = values[6:]
    ordered = [*wanted[2:], wanted[0] or wanted[1]]
    rows = q_h[1] + q_g[1]
    return attention_backward(ordered, rows, args[0], args[2], args[9] is not None)
