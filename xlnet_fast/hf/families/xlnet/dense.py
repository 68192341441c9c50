"""HF's own dense layer arguments, for layers that are not accelerated.

A user may replace or override a layer. Such a layer runs as it is, inside an otherwise accelerated
model, and gets what HF would have handed it. Its attention may have modules for projections, which
HF's code of it cannot call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlnet_fast.masks import row_positions
from xlnet_fast.nn import AttentionContext
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.rel_attention import stream_mask


def dense_arguments(
    context: AttentionContext, table: Tensor, h: Tensor, memory_length: int
) -> dict[str, Any]:
    """Keyword arguments of HF's ``XLNetLayer.forward`` after the two streams.

    Args:
        context: with a dense ``target_mapping`` or none (not with ``positions``).
        table: (P, G, H) position table. h: (I, B, H).

    Returns:
        attn_mask_h, attn_mask_g (I or 1, J, B, 1), r (P, B, H), seg_mat (I, J, B, 2),
        target_mapping (I', I, B); None where HF has None.
    """
    queries, batch = h.shape[:2]
    keys = memory_length + queries
    rows = row_positions(None, queries, h.device)
    masks: list[Tensor | None] = []
    for see_self in (True, False):
        hidden = stream_mask(context.mask, see_self).hidden(rows, keys, memory_length)
        if hidden is not None:
            hidden = hidden.expand(batch, -1, -1).permute(1, 2, 0)[..., None].to(h.dtype)
        masks.append(hidden)
    segment_matrix = None
    if context.segments is not None:
        current = context.segments[:, memory_length:]
        differ = (current[:, :, None] != context.segments[:, None, :]).permute(1, 2, 0)
        # Not one_hot, which asserts what it is given: torchax cannot lower that.
        segment_matrix = torch.stack([~differ, differ], dim=-1).to(h.dtype)
    return {
        "attn_mask_h": masks[0],
        "attn_mask_g": masks[1],
        "r": table.repeat_interleave(batch // table.shape[1], dim=1).to(h.dtype),
        "seg_mat": segment_matrix,
        "target_mapping": None
        if context.target_mapping is None
        else context.target_mapping.to(h.dtype),
    }


def dense_attention(
    attention: Any,
    h: Tensor,
    g: Tensor | None,
    attn_mask_h: Tensor | None,
    attn_mask_g: Tensor | None,
    r: Tensor,
    seg_mat: Tensor | None,
    mems: Tensor | None = None,
    target_mapping: Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[Any, ...]:
    """HF's ``XLNetRelativeAttention.forward`` of a layer whose projections are modules."""

    def heads_of(name: str, x: Tensor) -> Tensor:  # (S, B, N, D)
        return project(getattr(attention, name), x).unflatten(-1, attention.r_w_bias.shape)

    keys_of = h if mems is None or mems.dim() <= 1 else torch.cat([mems, h])
    shared = (heads_of("k", keys_of), heads_of("v", keys_of), heads_of("r", r.to(h.dtype)))
    outputs: list[Tensor | None] = []
    probabilities = []
    for stream, mask in ((h, attn_mask_h), (g, attn_mask_g)):
        if stream is None:
            outputs.append(None)
            continue
        mapping = target_mapping if outputs else None  # of the query stream, the second
        rows = heads_of("q", stream)
        if mapping is not None:
            rows = torch.einsum("mbnd,mlb->lbnd", rows, mapping)
        vector = attention.rel_attn_core(
            rows, *shared, seg_mat=seg_mat, attn_mask=mask, output_attentions=output_attentions
        )
        if output_attentions:
            vector, probability = vector
            probabilities.append(probability)
        if mapping is not None:
            vector = torch.einsum("lbnd,mlb->mbnd", vector, mapping)
        outputs.append(attention.post_attention(stream, vector))
    if not output_attentions:
        return tuple(outputs)
    return (*outputs, probabilities[0] if g is None else tuple(probabilities))
