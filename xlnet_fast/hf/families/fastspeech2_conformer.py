"""FastSpeech2-Conformer, whose decoder is an encoder too.

Its feed-forward blocks are convolutions over several frames, and stay Hugging Face's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import (
    FastSpeech2ConformerAttention,
    FastSpeech2ConformerConvolutionModule,
)

from xlnet_fast.hf.families.conformer import bare_convolution
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.masks import AttentionMask
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.projected_table import projected_table
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames


class FastAttention(FastSpeech2ConformerAttention):
    """HF's attention by the op."""

    @unless_patched(FastSpeech2ConformerAttention)
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        output_attentions: Any = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; a mask is (B, 1, T), 0 for padding."""
        rate = rate_of(self.dropout)
        batch, length, _ = hidden_states.shape
        is_ours = pos_emb is not None and rate is not None and not output_attentions
        if attention_mask is not None and attention_mask.shape != (batch, 1, length):
            is_ours = False  # Hugging Face's code says what is wrong with it
        if not is_ours:
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, pos_emb, output_attentions
            )
            return theirs
        assert pos_emb is not None
        assert rate is not None
        hidden = None if attention_mask is None else attention_mask[:, 0] == 0  # (B, T)
        attended = attend_frames(
            project(self.linear_q, hidden_states),
            project(self.linear_k, hidden_states),
            project(self.linear_v, hidden_states),
            projected_table(self.linear_pos, pos_emb, self.num_heads),
            self.pos_bias_u,
            self.pos_bias_v,
            mask=None if hidden is None else AttentionMask(key_padding=hidden),
            scale=self.dim_key**-0.5,
            dropout_p=rate,
            backend=self._xlnet_fast_options.backend,
        )
        if hidden is not None:  # without any valid frame Hugging Face's probabilities are zero
            attended = attended.masked_fill(torch.all(hidden, dim=-1)[:, None, None], 0.0)
        return project(self.linear_out, attended), None


class FastConvolution(FastSpeech2ConformerConvolutionModule):
    """HF's block, whose products over channels are linear layers."""

    @unless_patched(FastSpeech2ConformerConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return bare_convolution(self, hidden_states, attention_mask)


FAMILY = FamilyOfParts(
    "FastSpeech2-Conformer",
    (
        Part(
            FastSpeech2ConformerAttention, FastAttention,
            why_not=lambda attention: why_not_head_dim(attention.head_dim),
        ),
        Part(
            FastSpeech2ConformerConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
