"""Drop-in acceleration of Hugging Face's models: XLNet, and speech encoders with its attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xlnet_fast.hf import versions  # first: it refuses what the others cannot be imported with
from xlnet_fast.hf.explanation import Explanation, explain
from xlnet_fast.hf.patching import accelerate, disable, enable, is_accelerated, restore

if TYPE_CHECKING:
    from xlnet_fast.hf.families.xlnet.generation import to_mems
    from xlnet_fast.hf.families.xlnet.linear_attention import linear_attention
    from xlnet_fast.hf.families.xlnet.memory import Memory

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

_OF_XLNET = {"Memory": "memory", "linear_attention": "linear_attention", "to_mems": "generation"}


def __getattr__(name: str) -> Any:
    """Load what belongs to XLNet alone on first use: other models need nothing of it."""
    if name not in _OF_XLNET:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.families.xlnet.{_OF_XLNET[name]}"), name)
