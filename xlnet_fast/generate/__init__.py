"""Writing text with a trained XLNet: prompts, long ones in segments, and Hugging Face's search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.generate.options import GenerateOptions

if TYPE_CHECKING:
    from xlnet_fast.generate.run import GenerateResult, Text, generate
    from xlnet_fast.generate.segments import read_in_segments

__all__ = ["GenerateOptions", "GenerateResult", "Text", "generate", "read_in_segments"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name in ("GenerateResult", "Text", "generate"):
        from xlnet_fast.generate import run

        return getattr(run, name)
    if name == "read_in_segments":
        from xlnet_fast.generate.segments import read_in_segments

        return read_in_segments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
