"""What the encoders of Granite speech share: attention within blocks of frames (Shaw).

Frames are padded to whole blocks, which are folded into the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.hf.adoption import laid_over
from xlnet_fast.hf.families.conformer import gate, table_of_keys
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.patches import unless_patched
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


# ---- granite_speech and granite_speech_plus, which lay these over their own copies ----


class FastAttention(nn.Module):
    """HF's attention by the op."""

    context_size: int
    num_heads: int
    scale: float
    pre_norm: nn.Module
    to_q: nn.Module
    to_kv: nn.Module
    to_out: nn.Module
    dropout: nn.Module

    @unless_patched()
    def forward(self, hidden_states: Tensor, attention_dists: Tensor) -> Tensor:
        """(B, T, H) and the (C, C) pairs to (B, T, H), as HF."""
        batch, length, _ = hidden_states.shape
        context = self.context_size
        frames = fold(self.pre_norm(hidden_states), context)
        k, v = project(self.to_kv, frames).chunk(2, dim=-1)
        mask = None
        if length % context:
            visible = torch.ones(batch, length, dtype=torch.bool, device=frames.device)
            mask = hidden_frames(visible, context)
        attended = attend_in_blocks(
            self, project(self.to_q, frames), k, v, attention_dists, self.num_heads,
            mask=mask, scale=self.scale,
        )  # fmt: skip
        return drop(self.dropout, project(self.to_out, unfold(attended, batch, length)))


class FastFeedForward(nn.Module):
    """HF's block on the linear op."""

    pre_norm: nn.Module
    up_proj: nn.Module
    silu: nn.Module
    down_proj: nn.Module
    dropout: nn.Module

    @unless_patched()
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        inner = self.silu(project(self.up_proj, self.pre_norm(hidden_states)))
        return drop(self.dropout, project(self.down_proj, drop(self.dropout, inner)))


class FastConvolution(nn.Module):
    """HF's block, whose products over channels are linear layers."""

    norm: nn.Module
    up_conv: nn.Module
    glu: nn.Module
    depth_conv: nn.Module
    batch_norm: nn.Module
    silu: nn.Module
    down_conv: nn.Module
    dropout: nn.Module

    @unless_patched()
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        gated = gate(self.glu, pointwise(self.up_conv, self.norm(hidden_states)))
        mixed = self.silu(self.batch_norm(self.depth_conv(gated.transpose(1, 2))))
        return drop(self.dropout, pointwise(self.down_conv, mixed.transpose(1, 2)))


def family(
    title: str,
    attention: type[nn.Module],
    feed_forward: type[nn.Module],
    convolution: type[nn.Module],
) -> FamilyOfParts:
    """The family whose classes these are."""

    def too_wide(module: Any) -> str | None:
        return why_not_head_dim(module.dim_head)

    return FamilyOfParts(
        title,
        (
            Part(attention, laid_over(FastAttention, attention), why_not=too_wide),
            Part(feed_forward, laid_over(FastFeedForward, feed_forward), "feed-forward block"),
            Part(convolution, laid_over(FastConvolution, convolution), "convolution"),
        ),
        head_dim_of=lambda module: module.dim_head,
        dropout="",
    )
