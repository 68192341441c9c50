"""How well a model foretells a text: loss, perplexity, bits per token, character and byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.perplexity.options import PerplexityOptions

if TYPE_CHECKING:
    from xlnet_fast.perplexity.run import PerplexityResult, perplexity

__all__ = ["PerplexityOptions", "PerplexityResult", "perplexity"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name in ("PerplexityResult", "perplexity"):
        from xlnet_fast.perplexity import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
