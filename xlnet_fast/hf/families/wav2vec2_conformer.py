"""Wav2Vec2-Conformer, with positions "relative"."""

from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerConvolutionModule,
    Wav2Vec2ConformerFeedForward,
    Wav2Vec2ConformerSelfAttention,
)

from xlnet_fast.hf.families.wav2vec2_blocks import family

FAMILY = family(
    "Wav2Vec2-Conformer",
    Wav2Vec2ConformerSelfAttention,
    Wav2Vec2ConformerFeedForward,
    Wav2Vec2ConformerConvolutionModule,
    is_causal=False,
)
