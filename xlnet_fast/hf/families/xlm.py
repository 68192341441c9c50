"""XLM of Hugging Face."""

from transformers.models.xlm.modeling_xlm import (
    MultiHeadAttention,
    TransformerFFN,
    XLMPredLayer,
)

from xlnet_fast.hf.families.content import family

FAMILY = family("XLM", MultiHeadAttention, TransformerFFN, XLMPredLayer)
