"""Text generation: Hugging Face's ``generate`` drives, what a step computes is ours."""

from xlnet_fast.hf.generation.model import FastLMHeadModel

__all__ = ["FastLMHeadModel"]
