"""SpeechT5's encoder: distances as keys (Shaw). Its decoder has none and stays Hugging Face's.

Hugging Face makes a table (T, T, D) of all pairs of frames. Where every layer takes it, the table
here has a row for each distance, (2T - 1, 1, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.speecht5.modeling_speecht5 import (
    SpeechT5Attention,
    SpeechT5Encoder,
    SpeechT5EncoderLayer,
    SpeechT5FeedForward,
    SpeechT5RelativePositionalEncoding,
)

from xlnet_fast.hf.adoption import new_forward, unwrapped, why_kept
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.families.wav2vec2_blocks import dense_feed_forward
from xlnet_fast.hf.patches import patched, unless_patched
from xlnet_fast.masks import AttentionMask
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames

_COMPACT = "_xlnet_fast_compact"
"""On the positions while their encoder runs: whether a row for each distance is wanted."""


class FastEncoder(SpeechT5Encoder):
    """HF's encoder, which tells its positions whether all layers take the compact table."""

    @unless_patched(SpeechT5Encoder)
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As HF. A mask (B, T) becomes one of padding alone; any other is HF's affair."""
        is_padding = attention_mask is None or attention_mask.dim() == 2
        if not is_padding or not all(map(_takes_compact, self.layers)):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        setattr(self.embed_positions, _COMPACT, True)
        try:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        finally:
            self.embed_positions.__dict__.pop(_COMPACT, None)


def _takes_compact(layer: nn.Module) -> bool:
    layer = unwrapped(layer, (SpeechT5EncoderLayer,))
    if not isinstance(layer, SpeechT5EncoderLayer) or why_kept(layer, SpeechT5EncoderLayer):
        return False
    attention = unwrapped(layer.attention, (SpeechT5Attention,))
    return (
        isinstance(attention, FastAttention)
        and not new_forward(attention)
        and not patched(SpeechT5Attention, "forward")
    )


class FastPositions(SpeechT5RelativePositionalEncoding):
    """HF's table, or a row of it for each distance."""

    @unless_patched(SpeechT5RelativePositionalEncoding)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (2T - 1, 1, D) for the distances query - key of T - 1 to 1 - T; or to
        HF's (T, T, D).
        """
        if not getattr(self, _COMPACT, False):
            pairs: Tensor = super().forward(hidden_states)
            return pairs
        length = hidden_states.shape[1]
        distances = torch.arange(length - 1, -length, -1, device=hidden_states.device)
        rows = distances.clamp(-self.max_length, self.max_length - 1) + self.max_length
        table: Tensor = self.pe_k(rows)
        return table[:, None]


class FastAttention(SpeechT5Attention):
    """HF's attention by the op, where it has the compact table."""

    @unless_patched(SpeechT5Attention)
    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As HF; with the compact table, the mask is None or additive and made of padding."""
        table = kwargs.get("position_bias")
        if table is None or table.dim() != 3 or table.shape[1] != 1:
            theirs: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *args, **kwargs)
            return theirs
        if args or not kwargs.keys() <= _KNOWN or kwargs.get("output_attentions") or self.__drops():
            kwargs["position_bias"] = _of_pairs(table)
            theirs = super().forward(hidden_states, *args, **kwargs)
            return theirs
        mask = kwargs.get("attention_mask")
        zero = hidden_states.new_zeros(self.num_heads, self.head_dim)
        attended = attend_frames(
            project(self.q_proj, hidden_states),
            project(self.k_proj, hidden_states),
            project(self.v_proj, hidden_states),
            table[None],
            zero,
            zero,
            mask=None if mask is None else AttentionMask(key_padding=mask[:, 0, 0] != 0),
            scale=self.scaling,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self._xlnet_fast_options.backend,
        )
        return project(self.out_proj, attended), None

    def __drops(self) -> bool:
        """Whether all probabilities are dropped, which the op does not take."""
        return self.training and self.dropout >= 1.0


_KNOWN = {"attention_mask", "position_bias", "output_attentions"}
"""The arguments with which an encoder's layer calls its attention."""


def _of_pairs(table: Tensor) -> Tensor:
    """HF's (T, T, D) of the compact (2T - 1, 1, D)."""
    length = (table.shape[0] + 1) // 2
    frames = torch.arange(length, device=table.device)
    return table[length - 1 - frames[:, None] + frames, 0]


class FastFeedForward(SpeechT5FeedForward):
    """HF's block on the linear op."""

    @unless_patched(SpeechT5FeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return dense_feed_forward(self, hidden_states)


def _why_not(attention: SpeechT5Attention) -> str | None:
    if attention.is_decoder:
        return "it is the decoder's, which has no relative positions"
    return why_not_head_dim(attention.head_dim)


FAMILY = FamilyOfParts(
    "SpeechT5",
    (
        Part(SpeechT5Attention, FastAttention, why_not=_why_not),
        Part(SpeechT5Encoder, FastEncoder, "encoder"),
        Part(
            SpeechT5RelativePositionalEncoding, FastPositions, "table of positions",
        ),
        Part(
            SpeechT5FeedForward, FastFeedForward, "feed-forward block",
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
