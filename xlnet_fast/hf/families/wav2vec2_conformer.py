"""Wav2Vec2-Conformer, with positions "relative"."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerConvolutionModule,
    Wav2Vec2ConformerFeedForward,
    Wav2Vec2ConformerSelfAttention,
)

from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.wav2vec2_blocks import (
    centred_convolution,
    dense_feed_forward,
    relative_attention,
    why_not_attention,
)
from xlnet_fast.hf.patches import unless_patched


class FastAttention(Wav2Vec2ConformerSelfAttention):
    """HF's attention by the op."""

    @unless_patched(Wav2Vec2ConformerSelfAttention)
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


class FastFeedForward(Wav2Vec2ConformerFeedForward):
    """HF's block on the linear op."""

    @unless_patched(Wav2Vec2ConformerFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


class FastConvolution(Wav2Vec2ConformerConvolutionModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(Wav2Vec2ConformerConvolutionModule)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return centred_convolution(self, hidden_states)


FAMILY = FamilyOfParts(
    "Wav2Vec2-Conformer",
    (
        Part(Wav2Vec2ConformerSelfAttention, FastAttention, why_not=why_not_attention),
        Part(
            Wav2Vec2ConformerFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            Wav2Vec2ConformerConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_size,
    dropout="",
)  # fmt: skip
