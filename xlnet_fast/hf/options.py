"""What the user asks of ``accelerate``; every adopted module keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The arguments of ``accelerate``; ``backend`` is for all families, the others for XLNet."""

    backend: str = "auto"
    exact_dropout: bool = False
    summarize_real_tokens: bool = False
