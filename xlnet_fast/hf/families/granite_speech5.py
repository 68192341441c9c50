"""The encoder of Granite speech 5, with and without its CTC head."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.granite_speech5.modeling_granite_speech5 import (
    GraniteSpeech5EncoderAttention,
    GraniteSpeech5EncoderConvolutionModule,
    GraniteSpeech5EncoderFeedForward,
)

from xlnet_fast.hf.families.conformer import feed_forward, why_not_attention
from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.granite_blocks import attend_in_blocks, fold, hidden_frames, unfold
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.hf.recording import IMPLEMENTATIONS
from xlnet_fast.nn.projection import project


class FastAttention(GraniteSpeech5EncoderAttention):
    """HF's attention by the op. It gives no probabilities, and neither does HF's."""

    @unless_patched(GraniteSpeech5EncoderAttention)
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """(B, T, H) to (B, T, H), as HF; a mask is (B, T) bool, True for valid frames."""
        if not _is_ours(self, kwargs):
            theirs: tuple[Tensor, None] = super().forward(
                hidden_states, position_embeddings, attention_mask, **kwargs
            )
            return theirs
        batch, length, _ = hidden_states.shape
        context, visible = self.context_size, attention_mask
        frames = fold(hidden_states, context)
        if visible is None and length % context:
            visible = hidden_states.new_ones(batch, length).bool()
        attended = attend_in_blocks(
            self,
            project(self.q_proj, frames),
            project(self.k_proj, frames),
            project(self.v_proj, frames),
            position_embeddings,
            self.config.num_attention_heads,
            mask=None if visible is None else hidden_frames(visible, context),
            scale=self.scaling,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return project(self.o_proj, unfold(attended, batch, length)), None


def _is_ours(module: GraniteSpeech5EncoderAttention, kwargs: dict[str, Any]) -> bool:
    return (
        module.config._attn_implementation in IMPLEMENTATIONS
        and not (module.is_causal or kwargs.get("is_causal") or kwargs.get("softcap"))
        and not (module.training and module.attention_dropout >= 1.0)
    )


class FastFeedForward(GraniteSpeech5EncoderFeedForward):
    """HF's block on the linear op."""

    @unless_patched(GraniteSpeech5EncoderFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return feed_forward(self, hidden_states)


class FastConvolution(GraniteSpeech5EncoderConvolutionModule):
    """HF's block on the linear op."""

    @unless_patched(GraniteSpeech5EncoderConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), or half the frames, as HF."""
        gated = F.glu(project(self.pointwise_lin1, hidden_states), dim=-1)
        if attention_mask is not None:
            gated = gated.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        mixed = F.silu(self.norm(self.depthwise_conv(gated.transpose(1, 2))))
        return project(self.pointwise_lin2, mixed.transpose(1, 2))


FAMILY = FamilyOfParts(
    "Granite speech 5",
    (
        Part(GraniteSpeech5EncoderAttention, FastAttention, why_not=why_not_attention),
        Part(
            GraniteSpeech5EncoderFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            GraniteSpeech5EncoderConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
