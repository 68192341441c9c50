"""Text generation: Hugging Face's ``generate`` drives, what a step computes is ours."""

from xlnet_fast.hf.families.xlnet.generation.model import FastLMHeadModel
from xlnet_fast.hf.families.xlnet.generation.state import GenerationState, to_mems

__all__ = ["FastLMHeadModel", "GenerationState", "to_mems"]
