"""Wav2Vec2-BERT, with positions "relative" and "relative_key"."""

from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertConvolutionModule,
    Wav2Vec2BertFeedForward,
    Wav2Vec2BertSelfAttention,
)

from xlnet_fast.hf.families.wav2vec2_blocks import family

FAMILY = family(
    "Wav2Vec2-BERT",
    Wav2Vec2BertSelfAttention,
    Wav2Vec2BertFeedForward,
    Wav2Vec2BertConvolutionModule,
    is_causal=True,
)
