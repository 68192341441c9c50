"""Parakeet's encoder, which Canary, CohereAsr and NemotronHOmni take as it is.

Of each block the attention, both feed-forward blocks and the convolution's products are ours, and
so is the table of positions, which is made for one element of the batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderConvolutionModule,
    ParakeetEncoderFeedForward,
    ParakeetEncoderRelPositionalEncoding,
)

from xlnet_fast.hf.families.conformer import (
    attend,
    attends_as_ours,
    bare_convolution,
    feed_forward,
    table_of_positions,
    why_not_attention,
)
from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.hf.versions import PARAKEETS_BLIND_ARE_ZERO


class FastPositions(ParakeetEncoderRelPositionalEncoding):
    """HF's table, made for one element of the batch, and kept on a CPU."""

    @unless_patched(ParakeetEncoderRelPositionalEncoding)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, 2T - 1, H), one element expanded over the batch."""
        return table_of_positions(self, hidden_states, hidden_states.shape[1], super().forward)


class FastAttention(ParakeetEncoderAttention):
    """HF's attention by the op."""

    @unless_patched(ParakeetEncoderAttention)
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; the probabilities are None, but where somebody asks for them."""
        if position_embeddings is None or not attends_as_ours(
            self, position_embeddings, attention_mask, kwargs
        ):
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
            return theirs
        output = attend(
            self, hidden_states, position_embeddings, attention_mask,
            blind_are_zero=PARAKEETS_BLIND_ARE_ZERO,
        )  # fmt: skip
        return output, None


class FastFeedForward(ParakeetEncoderFeedForward):
    """HF's block on the linear op."""

    @unless_patched(ParakeetEncoderFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return feed_forward(self, hidden_states)


class FastConvolution(ParakeetEncoderConvolutionModule):
    """HF's block, whose products over channels are linear layers on frames as they lie."""

    @unless_patched(ParakeetEncoderConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF, padded frames zero before the depthwise convolution."""
        return bare_convolution(self, hidden_states, attention_mask)


FAMILY = FamilyOfParts(
    "Parakeet",
    (
        Part(ParakeetEncoderAttention, FastAttention, "attention", why_not=why_not_attention),
        Part(
            ParakeetEncoderRelPositionalEncoding, FastPositions, "table of positions",
        ),
        Part(
            ParakeetEncoderFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            ParakeetEncoderConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
