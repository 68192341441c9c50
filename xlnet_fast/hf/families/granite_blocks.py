"""What the encoders of Granite speech share: attention within blocks of frames (Shaw).

Frames are padded to whole blocks, which are folded into the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.hf.families.conformer import gate, table_of_keys
from xlnet_fast.masks import AttentionMask
from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.pointwise import pointwise
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames


def fold(frames: Tensor, context: int) -> Tensor:
    """(B, T, H) to (B * blocks, context, H), with zeros after the last frame."""
    padded = F.pad(frames, (0, 0, 0, -frames.shape[1] % context))
    return padded.reshape(-1, context, frames.shape[2])


def unfold(blocks: Tensor, batch: int, length: int) -> Tensor:
    """(B * blocks, context, H) to (B, T, H)."""
    return blocks.reshape(batch, -1, blocks.shape[2])[:, :length]


def hidden_frames(visible: Tensor, context: int) -> AttentionMask:
    """(B, T) bool, True for frames that are seen, as the padding of folded blocks."""
    padded = F.pad(visible, (0, -visible.shape[1] % context), value=False)
    return AttentionMask(key_padding=~padded.reshape(-1, context))


def distances_of(pairs: Tensor) -> Tensor:
    """(2C - 1,) rows of the embedding for the distances query - key of C - 1 to 1 - C.

    Args:
        pairs: (C, C), the encoder's buffer of a row for each query and key.
    """
    return torch.cat([pairs[:, 0].flip(0), pairs[0, 1:]])


def attend_in_blocks(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pairs: Tensor,
    heads: int,
    *,
    mask: AttentionMask | None,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of every block among its own frames.

    Args:
        module: has ``rel_pos_emb``.
        q, k, v: (B * blocks, C, N * D). pairs: (C, C), as in :func:`distances_of`. heads: N.

    Returns:
        (B * blocks, C, N * D).
    """
    zero = q.new_zeros(heads, q.shape[2] // heads)
    return attend_frames(
        q, k, v, table_of_keys(module.rel_pos_emb, distances_of(pairs)), zero, zero,
        mask=mask, scale=scale, dropout_p=dropout_p, backend=module._xlnet_fast_options.backend,
    )  # fmt: skip


# ---- the blocks of granite_speech and granite_speech_plus ----


def attention(module: Any, hidden_states: Tensor, pairs: Tensor) -> Tensor:
    """pre_norm, to_q, to_kv, to_out, dropout; (B, T, H) to (B, T, H)."""
    batch, length, _ = hidden_states.shape
    context = module.context_size
    frames = fold(module.pre_norm(hidden_states), context)
    k, v = project(module.to_kv, frames).chunk(2, dim=-1)
    mask = None
    if length % context:
        visible = torch.ones(batch, length, dtype=torch.bool, device=frames.device)
        mask = hidden_frames(visible, context)
    attended = attend_in_blocks(
        module, project(module.to_q, frames), k, v, pairs, module.num_heads,
        mask=mask, scale=module.scale,
    )  # fmt: skip
    return drop(module.dropout, project(module.to_out, unfold(attended, batch, length)))


def feed_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """pre_norm, up_proj, silu, down_proj, and a dropout after each."""
    inner = module.silu(project(module.up_proj, module.pre_norm(hidden_states)))
    return drop(module.dropout, project(module.down_proj, drop(module.dropout, inner)))


def convolution(module: Any, hidden_states: Tensor) -> Tensor:
    """norm, up_conv, glu, depth_conv, batch_norm, silu, down_conv, dropout."""
    gated = gate(module.glu, pointwise(module.up_conv, module.norm(hidden_states)))
    mixed = module.silu(module.batch_norm(module.depth_conv(gated.transpose(1, 2))))
    return drop(module.dropout, pointwise(module.down_conv, mixed.transpose(1, 2)))
