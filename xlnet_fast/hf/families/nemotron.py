"""Nemotron's streaming encoder: Parakeet's attention in chunks of frames, with a cache of keys and
values, and convolutions that look back alone. Nemotron 3.5 ASR takes it as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoderAttention,
    NemotronAsrStreamingEncoderConvolutionModule,
    NemotronAsrStreamingEncoderFeedForward,
    NemotronAsrStreamingEncoderRelPositionalEncoding,
)

from xlnet_fast.hf.families.conformer import (
    attend,
    attends_as_ours,
    by_element,
    feed_forward,
    table_of_positions,
    why_not_attention,
)
from xlnet_fast.hf.families.family import FamilyOfParts, Part
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.nn.pointwise import pointwise


class FastPositions(NemotronAsrStreamingEncoderRelPositionalEncoding):
    """HF's table, made for one element of the batch, and kept on a CPU."""

    @unless_patched(NemotronAsrStreamingEncoderRelPositionalEncoding)
    def forward(self, hidden_states: Tensor, cached_frames: int | None = None) -> Tensor:
        """(B, I, H) to (B, 2J - 1, H) of the J frames with those of the cache; raises as HF."""
        length = hidden_states.shape[1] + (cached_frames or 0)
        if length > self.max_position_embeddings:
            theirs: Tensor = super().forward(hidden_states, cached_frames)
            return theirs
        return table_of_positions(self, hidden_states, length, super().forward)


class FastAttention(NemotronAsrStreamingEncoderAttention):
    """HF's attention by the op."""

    @unless_patched(NemotronAsrStreamingEncoderAttention)
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As HF with "sdpa"; the cache is ``cache``, or ``past_key_values`` as it was called."""
        if position_embeddings is None or not _is_ours(
            self, position_embeddings, attention_mask, kwargs
        ):
            theirs: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
            return theirs
        caches = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        cache = next((each for each in caches if each is not None), None)

        def with_cached(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            if cache is None:
                return k, v
            new = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (k, v))
            k, v = cache.update(*new, self.layer_idx, kwargs=kwargs)  # (B, N, J, D)
            return k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)

        output = attend(
            self, hidden_states, position_embeddings, attention_mask, with_cached,
            blind_are_zero=True,
        )  # fmt: skip
        return output, None


def _is_ours(module: Any, positions: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    return _why_not_eager(module) is None and attends_as_ours(module, positions, mask, kwargs)


class FastFeedForward(NemotronAsrStreamingEncoderFeedForward):
    """HF's block on the linear op."""

    @unless_patched(NemotronAsrStreamingEncoderFeedForward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H), as HF."""
        return feed_forward(self, hidden_states)


class FastConvolution(NemotronAsrStreamingEncoderConvolutionModule):
    """HF's block, whose products over channels are linear layers on frames as they lie."""

    @unless_patched(NemotronAsrStreamingEncoderConvolutionModule)
    def forward(
        self,
        hidden_states: Tensor,
        all_masked_rows: Tensor | None = None,
        padding_cache: Any = None,
    ) -> Tensor:
        """(B, T, H) to (B, T, H), as HF; ``all_masked_rows`` (B, 1, T) are zero before it mixes."""
        gated = F.glu(pointwise(self.pointwise_conv1, hidden_states), dim=-1)
        if all_masked_rows is not None:
            gated = gated.masked_fill(all_masked_rows.transpose(1, 2), 0.0)
        mixed = self.depthwise_conv(gated.transpose(1, 2), padding_cache=padding_cache)
        normed = self.norm(mixed.transpose(1, 2))
        return pointwise(self.pointwise_conv2, by_element(self.activation, normed))


def _why_not_eager(module: Any) -> str | None:
    if module.config._attn_implementation == "eager":
        return "with attn_implementation 'eager' Hugging Face inverts the mask; 'sdpa' is right"
    return None


def _why_not(module: Any) -> str | None:
    return _why_not_eager(module) or why_not_attention(module)


FAMILY = FamilyOfParts(
    "Nemotron streaming",
    (
        Part(
            NemotronAsrStreamingEncoderAttention, FastAttention, "attention", why_not=_why_not
        ),
        Part(
            NemotronAsrStreamingEncoderRelPositionalEncoding, FastPositions,
            "table of positions",
        ),
        Part(
            NemotronAsrStreamingEncoderFeedForward, FastFeedForward, "feed-forward block",
        ),
        Part(
            NemotronAsrStreamingEncoderConvolutionModule, FastConvolution, "convolution",
        ),
    ),
    head_dim_of=lambda attention: attention.head_dim,
)  # fmt: skip
