"""Wav2Vec2-BERT, with positions "relative" and "relative_key"."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertConvolutionModule,
    Wav2Vec2BertFeedForward,
    Wav2Vec2BertSelfAttention,
)

from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.wav2vec2_blocks import (
    causal_convolution,
    dense_feed_forward,
    relative_attention,
    why_not_attention,
)
from xlnet_fast.hf.patches import unless_patched


class FastAttention(Wav2Vec2BertSelfAttention):
    """HF's attention by the op."""

    @unless_patched(Wav2Vec2BertSelfAttention)
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


class FastFeedForward(Wav2Vec2BertFeedForward):
    """HF's block on the linear op."""

    @unless_patched(Wav2Vec2BertFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


class FastConvolution(Wav2Vec2BertConvolutionModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(Wav2Vec2BertConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; padded frames of a mask (B, T) are zero."""
        return causal_convolution(self, hidden_states, attention_mask)


FAMILY = FamilyOfParts(
    "Wav2Vec2-BERT",
    (
        Part(Wav2Vec2BertSelfAttention, FastAttention, why_not=why_not_attention),
        Part(
            Wav2Vec2BertFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            Wav2Vec2BertConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_size,
    dropout="",
)  # fmt: skip
