"""Checkpoints of Transformer-XL that other code left: Hugging Face's, the original's, NVIDIA's."""

from xlnet_fast.models.transfo_xl.convert.run import SOURCES, Converted, convert

__all__ = ["SOURCES", "Converted", "convert"]
