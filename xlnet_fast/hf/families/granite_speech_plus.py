"""The encoder of Granite speech plus; the rest stays Hugging Face's."""

from transformers.models.granite_speech_plus.modeling_granite_speech_plus import (
    GraniteSpeechPlusConformerAttention,
    GraniteSpeechPlusConformerConvModule,
    GraniteSpeechPlusConformerFeedForward,
)

from xlnet_fast.hf.families.granite_blocks import family

FAMILY = family(
    "Granite speech plus",
    GraniteSpeechPlusConformerAttention,
    GraniteSpeechPlusConformerFeedForward,
    GraniteSpeechPlusConformerConvModule,
)
