"""The encoder of Granite speech; its projector and language model stay Hugging Face's."""

from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerConvModule,
    GraniteSpeechConformerFeedForward,
)

from xlnet_fast.hf.families.granite_blocks import family

FAMILY = family(
    "Granite speech",
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerFeedForward,
    GraniteSpeechConformerConvModule,
)
