"""Parakeet's encoder, which Canary, CohereAsr and NemotronHOmni take as it is.

Of each block the attention, both feed-forward blocks and the convolution's products are ours, and
so is the table of positions, which is made for one element of the batch.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderConvolutionModule,
    ParakeetEncoderFeedForward,
    ParakeetEncoderRelPositionalEncoding,
)

from xlnet_fast.hf.families.conformer import (
    bare_convolution,
    linear_feed_forward,
    why_not_head_dim,
)
from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.families.frames import mask_of_frames
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.hf.recording import (
    IMPLEMENTATIONS,
    wants_probabilities,
    why_not_implementation,
)
from xlnet_fast.hf.versions import why_no_speech
from xlnet_fast.nn.projected_table import MOST_KEPT_BYTES, projected_table
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames
from xlnet_fast.transforms import nobody_looks_on

_STEP = 128
"""Frames: tables that are kept reach to a multiple of it, so that most lengths find one."""
_KEPT: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()


class FastPositions(ParakeetEncoderRelPositionalEncoding):
    """HF's table, made for one element of the batch, and kept on a CPU."""

    @unless_patched(ParakeetEncoderRelPositionalEncoding)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, 2T - 1, H), one element expanded over the batch."""
        if hidden_states.device.type == "cpu" and nobody_looks_on():
            table = self.__kept(hidden_states)
        else:
            table = super().forward(hidden_states[:1])
        return table.expand(hidden_states.shape[0], -1, -1)

    def __kept(self, hidden_states: Tensor) -> Tensor:
        """(1, 2T - 1, H), rows of a longer one: a row belongs to a distance, whatever T is."""
        length = hidden_states.shape[1]
        inv_freq, kept = self.inv_freq, _KEPT.get(self)
        fits = (
            kept is not None
            and kept[1].dtype == hidden_states.dtype
            and kept[1].shape[1] >= 2 * length - 1
            and torch.equal(kept[0], inv_freq)
        )
        if not fits:
            longest = -(-length // _STEP) * _STEP
            row_bytes = hidden_states.shape[2] * hidden_states.element_size()
            if (2 * longest - 1) * row_bytes > MOST_KEPT_BYTES:
                return super().forward(hidden_states[:1])
            with torch.inference_mode(False), torch.no_grad():
                frames = hidden_states.new_empty(1, longest, hidden_states.shape[2])
                kept = inv_freq.clone(), super().forward(frames)
            _KEPT[self] = kept
        assert kept is not None
        first = (kept[1].shape[1] + 1) // 2 - length
        return kept[1][:, first : first + 2 * length - 1]


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
        if not _is_ours(self, position_embeddings, attention_mask, kwargs):
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
            return theirs
        heads = self.config.num_attention_heads
        assert position_embeddings is not None
        attended = attend_frames(
            project(self.q_proj, hidden_states),
            project(self.k_proj, hidden_states),
            project(self.v_proj, hidden_states),
            projected_table(self.relative_k_proj, position_embeddings, heads),
            self.bias_u,
            self.bias_v,
            mask=mask_of_frames(attention_mask),
            scale=self.scaling,
            dropout_p=self.attention_dropout if self.training else 0.0,
            backend=self._xlnet_fast_options.backend,
        )
        return project(self.o_proj, attended), None


def _is_ours(
    module: ParakeetEncoderAttention,
    positions: Tensor | None,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> bool:
    """Whether a call is one that the op answers as HF does."""
    return (
        positions is not None
        and (mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1))
        and module.config._attn_implementation in IMPLEMENTATIONS
        and not wants_probabilities(module, kwargs)
        and module.attention_dropout < 1.0
    )


class FastFeedForward(ParakeetEncoderFeedForward):
    """HF's block on the linear op."""

    @unless_patched(ParakeetEncoderFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return linear_feed_forward(self, hidden_states)


class FastConvolution(ParakeetEncoderConvolutionModule):
    """HF's block, whose products over channels are linear layers on frames as they lie."""

    @unless_patched(ParakeetEncoderConvolutionModule)
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), as HF, padded frames zero before the depthwise convolution."""
        return bare_convolution(self, hidden_states, attention_mask)


def _why_not(attention: ParakeetEncoderAttention) -> str | None:
    if attention.num_key_value_groups != 1:
        return "it has fewer heads of keys than of queries"
    return (
        why_not_head_dim(attention.head_dim) or why_no_speech() or why_not_implementation(attention)
    )


FAMILY = FamilyOfParts(
    "Parakeet",
    (
        Part(ParakeetEncoderAttention, FastAttention, "attention", why_not=_why_not),
        Part(
            ParakeetEncoderRelPositionalEncoding, FastPositions, "table of positions",
            why_not=lambda module: why_no_speech(),
        ),
        Part(
            ParakeetEncoderFeedForward, FastFeedForward, "feed-forward block",
            why_not=lambda module: why_no_speech(),
        ),
        Part(
            ParakeetEncoderConvolutionModule, FastConvolution, "convolution",
            why_not=lambda module: why_no_speech(),
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
