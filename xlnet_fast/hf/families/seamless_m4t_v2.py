"""SeamlessM4T v2's speech encoder, with "relative_key" and attention in chunks."""

from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
    SeamlessM4Tv2ConformerConvolutionModule,
    SeamlessM4Tv2ConformerFeedForward,
    SeamlessM4Tv2ConformerSelfAttention,
)

from xlnet_fast.hf.families.wav2vec2_blocks import family

FAMILY = family(
    "SeamlessM4T v2",
    SeamlessM4Tv2ConformerSelfAttention,
    SeamlessM4Tv2ConformerFeedForward,
    SeamlessM4Tv2ConformerConvolutionModule,
    is_causal=True,
)
