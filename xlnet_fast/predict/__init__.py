"""A trained XLNet's answers: labels, entities, answers, choices, embeddings, text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.predict.options import PredictOptions

if TYPE_CHECKING:
    from xlnet_fast.predict.predictor import Predictor
    from xlnet_fast.predict.run import PredictResult, predict

__all__ = ["PredictOptions", "PredictResult", "Predictor", "predict"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name == "Predictor":
        from xlnet_fast.predict.predictor import Predictor

        return Predictor
    if name in ("PredictResult", "predict"):
        from xlnet_fast.predict import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
