"""SeamlessM4T's speech encoder, with positions "relative"."""

from transformers.models.seamless_m4t.modeling_seamless_m4t import (
    SeamlessM4TConformerConvolutionModule,
    SeamlessM4TConformerFeedForward,
    SeamlessM4TConformerSelfAttention,
)

from xlnet_fast.hf.families.wav2vec2_blocks import family

FAMILY = family(
    "SeamlessM4T",
    SeamlessM4TConformerSelfAttention,
    SeamlessM4TConformerFeedForward,
    SeamlessM4TConformerConvolutionModule,
    is_causal=False,
)
