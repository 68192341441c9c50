"""Modules built on the ops, with parameters named as Hugging Face names them."""

from xlnet_fast.nn.context import AttentionContext
from xlnet_fast.nn.positions import relative_positions
from xlnet_fast.nn.rel_attention import RelativeAttention

__all__ = ["AttentionContext", "RelativeAttention", "relative_positions"]
