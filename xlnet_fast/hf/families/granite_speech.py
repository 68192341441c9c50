"""The encoder of Granite speech; its projector and language model stay Hugging Face's."""

from __future__ import annotations

from torch import Tensor
from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerConvModule,
    GraniteSpeechConformerFeedForward,
)

from xlnet_fast.hf.families import granite_blocks
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.patches import unless_patched


class FastAttention(GraniteSpeechConformerAttention):
    """HF's attention by the op."""

    @unless_patched(GraniteSpeechConformerAttention)
    def forward(self, hidden_states: Tensor, attention_dists: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return granite_blocks.attention(self, hidden_states, attention_dists)


class FastFeedForward(GraniteSpeechConformerFeedForward):
    """HF's block on the linear op."""

    @unless_patched(GraniteSpeechConformerFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return granite_blocks.feed_forward(self, hidden_states)


class FastConvolution(GraniteSpeechConformerConvModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(GraniteSpeechConformerConvModule)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return granite_blocks.convolution(self, hidden_states)


FAMILY = FamilyOfParts(
    "Granite speech",
    (
        Part(
            GraniteSpeechConformerAttention, FastAttention,
            why_not=lambda attention: why_not_head_dim(attention.dim_head),
        ),
        Part(
            GraniteSpeechConformerFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            GraniteSpeechConformerConvModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.dim_head,
    dropout="",
)  # fmt: skip
