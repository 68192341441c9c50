"""SeamlessM4T v2's speech encoder, with positions "relative_key" and attention in chunks."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
    SeamlessM4Tv2ConformerConvolutionModule,
    SeamlessM4Tv2ConformerFeedForward,
    SeamlessM4Tv2ConformerSelfAttention,
)

from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.wav2vec2_blocks import (
    causal_convolution,
    dense_feed_forward,
    relative_attention,
    why_not_attention,
)
from xlnet_fast.hf.patches import unless_patched


class FastAttention(SeamlessM4Tv2ConformerSelfAttention):
    """HF's attention by the op."""

    @unless_patched(SeamlessM4Tv2ConformerSelfAttention)
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; the probabilities are None, but where somebody asks for them."""
        attended = relative_attention(self, hidden_states, attention_mask, None, kwargs)
        if attended is None:
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, **kwargs
            )
            return theirs
        return attended, None


class FastFeedForward(SeamlessM4Tv2ConformerFeedForward):
    """HF's block on the linear op."""

    @unless_patched(SeamlessM4Tv2ConformerFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


class FastConvolution(SeamlessM4Tv2ConformerConvolutionModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(SeamlessM4Tv2ConformerConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; padded frames of a mask (B, T) are zero."""
        return causal_convolution(self, hidden_states, attention_mask)


FAMILY = FamilyOfParts(
    "SeamlessM4T v2",
    (
        Part(SeamlessM4Tv2ConformerSelfAttention, FastAttention, why_not=why_not_attention),
        Part(
            SeamlessM4Tv2ConformerFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            SeamlessM4Tv2ConformerConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_size,
    dropout="",
)  # fmt: skip
