"""SeamlessM4T's speech encoder, with positions "relative"; its text and unit models stay HF's."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.seamless_m4t.modeling_seamless_m4t import (
    SeamlessM4TConformerConvolutionModule,
    SeamlessM4TConformerFeedForward,
    SeamlessM4TConformerSelfAttention,
)

from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.wav2vec2_blocks import (
    centred_convolution,
    dense_feed_forward,
    relative_attention,
    why_not_attention,
)
from xlnet_fast.hf.patches import unless_patched


class FastAttention(SeamlessM4TConformerSelfAttention):
    """HF's attention by the op."""

    @unless_patched(SeamlessM4TConformerSelfAttention)
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; the probabilities are None, but where somebody asks for them."""
        attended = relative_attention(
            self, hidden_states, attention_mask, relative_position_embeddings, kwargs
        )
        if attended is None:
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, relative_position_embeddings, **kwargs
            )
            return theirs
        return attended, None


class FastFeedForward(SeamlessM4TConformerFeedForward):
    """HF's block on the linear op."""

    @unless_patched(SeamlessM4TConformerFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


class FastConvolution(SeamlessM4TConformerConvolutionModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(SeamlessM4TConformerConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; padded frames of a mask (B, T) are zero."""
        return centred_convolution(self, hidden_states, attention_mask)


FAMILY = FamilyOfParts(
    "SeamlessM4T",
    (
        Part(SeamlessM4TConformerSelfAttention, FastAttention, why_not=why_not_attention),
        Part(
            SeamlessM4TConformerFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            SeamlessM4TConformerConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_size,
    dropout="",
)  # fmt: skip
