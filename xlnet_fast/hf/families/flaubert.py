"""Flaubert of Hugging Face, which has its own copies of XLM's layers."""

from transformers.models.flaubert.modeling_flaubert import (
    FlaubertPredLayer,
    MultiHeadAttention,
    TransformerFFN,
)

from xlnet_fast.hf.families.content import family

FAMILY = family("Flaubert", MultiHeadAttention, TransformerFFN, FlaubertPredLayer)
