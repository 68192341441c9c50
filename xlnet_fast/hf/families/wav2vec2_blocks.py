"""What Wav2Vec2-Conformer, Wav2Vec2-BERT and both SeamlessM4T copy from each other.

A family lays the fast classes at the end over its own copies. Each function before them is the body
of a forward on our ops, by the names of its module's parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.hf.adoption import laid_over
from xlnet_fast.hf.families.conformer import by_element, gate, table_of_keys
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.families.frames import is_readable, mask_of_frames
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.hf.recording import IMPLEMENTATIONS, wants_probabilities, why_not_implementation
from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.pointwise import pointwise
from xlnet_fast.nn.projected_table import projected_table
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames

# ---- attention: linear_q, linear_k, linear_v, linear_out, num_heads, head_size, dropout ----

RELATIVE, RELATIVE_KEY = "relative", "relative_key"


def why_not_attention(attention: Any) -> str | None:
    """Why an attention that has positions of several types keeps Hugging Face's code."""
    kind = attention.position_embeddings_type
    if kind is None:
        return "it has no relative positions"
    if kind not in (RELATIVE, RELATIVE_KEY):
        return f"its positions are {kind!r}, and we take {RELATIVE!r} and {RELATIVE_KEY!r}"
    return why_not_head_dim(attention.head_size) or why_not_implementation(attention)


def relative_attention(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """Self-attention with relative positions, or distances as keys (Shaw).

    Args:
        hidden_states: (B, T, H). attention_mask: (B, 1, T, T), bool or additive.
        positions: (1, 2T - 1, H), the table of "relative"; not used by "relative_key".
        kwargs: the further arguments of the forward.

    Returns:
        (B, T, H); None where the call is not one that the op answers as Hugging Face does.
    """
    is_relative = module.position_embeddings_type == RELATIVE
    if (is_relative and positions is None) or not _is_ours(module, attention_mask, kwargs):
        return None
    heads, dim = module.num_heads, module.head_size
    if is_relative:
        assert positions is not None
        table = projected_table(module.linear_pos, positions, heads)
        bias_u, bias_v = module.pos_bias_u, module.pos_bias_v
    else:
        table = table_of_keys(
            module.distance_embedding,
            _clamped_distances(module, hidden_states.shape[1], hidden_states.device),
        )
        bias_u = bias_v = hidden_states.new_zeros(heads, dim)
    attended = attend_frames(
        project(module.linear_q, hidden_states),
        project(module.linear_k, hidden_states),
        project(module.linear_v, hidden_states),
        table,
        bias_u,
        bias_v,
        mask=mask_of_frames(attention_mask),
        scale=module.scaling,
        dropout_p=module.dropout.p if module.training else 0.0,
        backend=module._xlnet_fast_options.backend,
    )
    return project(module.linear_out, attended)


def _is_ours(module: Any, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    implementation = module.config._attn_implementation
    return (
        implementation in IMPLEMENTATIONS
        and is_readable(mask, implementation)
        and not wants_probabilities(module, kwargs)
        and not (module.is_causal or kwargs.get("is_causal") or kwargs.get("softcap"))
        and not (module.training and module.dropout.p >= 1.0)
    )


def _clamped_distances(module: Any, length: int, device: torch.device) -> Tensor:
    """(2T - 1,) rows of the embedding for the distances key - query of 1 - T to T - 1."""
    left, right = module.left_max_position_embeddings, module.right_max_position_embeddings
    return torch.arange(1 - length, length, device=device).clamp(-left, right) + left


# ---- feed-forward blocks ----


def dense_feed_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """intermediate_dense, its activation and dropout, output_dense, its dropout."""
    inner = module.intermediate_act_fn(project(module.intermediate_dense, hidden_states))
    inner = drop(module.intermediate_dropout, inner)
    return drop(module.output_dropout, project(module.output_dense, inner))


# ---- convolution blocks, whose products over channels are linear layers on frames as they lie ----


def _gated_channels(module: Any, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, C, T) before the depthwise convolution; padded frames are zero, of a mask (B, T)."""
    frames = module.layer_norm(hidden_states)
    if attention_mask is not None:
        frames = frames.masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)
    return gate(module.glu, pointwise(module.pointwise_conv1, frames)).transpose(1, 2)


def centred_convolution(
    module: Any, hidden_states: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """The block with batch norm, whose depthwise convolution sees both sides; (B, T, H)."""
    channels = _gated_channels(module, hidden_states, attention_mask)
    mixed = module.activation(module.batch_norm(module.depthwise_conv(channels)))
    return by_element(module.dropout, pointwise(module.pointwise_conv2, mixed.transpose(1, 2)))


def causal_convolution(
    module: Any, hidden_states: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """The block with layer norm, whose depthwise convolution sees the past alone; (B, T, H)."""
    channels = _gated_channels(module, hidden_states, attention_mask)
    channels = F.pad(channels, (module.depthwise_conv.kernel_size[0] - 1, 0))
    mixed = module.depthwise_layer_norm(module.depthwise_conv(channels).transpose(1, 2))
    mixed = by_element(module.activation, mixed)
    return by_element(module.dropout, pointwise(module.pointwise_conv2, mixed))


# ---- the classes that a family lays over its own ----


class FastAttention(nn.Module):
    """HF's attention by the op."""

    @unless_patched()
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *positions: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; the probabilities are None, but where somebody asks for them.

        ``relative_position_embeddings`` follow the mask, where the class has them.
        """
        further = dict(kwargs)
        table = further.pop("relative_position_embeddings", positions[0] if positions else None)
        attended = None
        if len(positions) <= 1:
            attended = relative_attention(self, hidden_states, attention_mask, table, further)
        if attended is None:
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, *positions, **kwargs
            )
            return theirs
        return attended, None


class FastFeedForward(nn.Module):
    """HF's block on the linear op."""

    @unless_patched()
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


class FastCentredConvolution(nn.Module):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched()
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; padded frames of a mask (B, T) are zero."""
        return centred_convolution(self, hidden_states, attention_mask)


class FastCausalConvolution(nn.Module):
    """The same where the block sees the past alone."""

    @unless_patched()
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; padded frames of a mask (B, T) are zero."""
        return causal_convolution(self, hidden_states, attention_mask)


def family(
    title: str,
    attention: type[nn.Module],
    feed_forward: type[nn.Module],
    convolution: type[nn.Module],
    *,
    is_causal: bool,
) -> FamilyOfParts:
    """The family whose classes these are; ``is_causal``: its convolution sees the past alone."""
    fast_convolution = FastCausalConvolution if is_causal else FastCentredConvolution
    return FamilyOfParts(
        title,
        (
            Part(attention, laid_over(FastAttention, attention), why_not=why_not_attention),
            Part(feed_forward, laid_over(FastFeedForward, feed_forward), "feed-forward block"),
            Part(convolution, laid_over(fast_convolution, convolution), "convolution"),
        ),
        head_dim_of=lambda module: module.head_size,
        dropout="",
    )
