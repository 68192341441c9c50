"""A trained XLNet's answers: labels, entities, answers, choices, embeddings, text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlnet_fast.predict.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name == "Predictor":
        from xlnet_fast.predict.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
