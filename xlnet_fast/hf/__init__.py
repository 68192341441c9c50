"""Drop-in acceleration of Hugging Face's XLNet."""

from xlnet_fast.hf import versions  # first: it refuses what the others cannot be imported with
from xlnet_fast.hf.explanation import Explanation, explain
from xlnet_fast.hf.generation import to_mems
from xlnet_fast.hf.memory import Memory
from xlnet_fast.hf.patching import (
    accelerate,
    disable,
    enable,
    is_accelerated,
    linear_attention,
    restore,
)

__all__ = [
    "Explanation",
    "Memory",
    "accelerate",
    "disable",
    "enable",
    "explain",
    "is_accelerated",
    "linear_attention",
    "restore",
    "to_mems",
    "versions",
]
