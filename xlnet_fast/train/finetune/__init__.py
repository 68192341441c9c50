"""Fine-tuning XLNet: classes, labels or a number for texts, tags for words, answers, choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.train.finetune.evaluation_options import EvaluateOptions
from xlnet_fast.train.finetune.options import FinetuneOptions

if TYPE_CHECKING:
    from xlnet_fast.train.finetune.evaluation import EvaluateResult, evaluate
    from xlnet_fast.train.finetune.run import FinetuneResult, finetune

__all__ = [
    "EvaluateOptions", "EvaluateResult", "FinetuneOptions", "FinetuneResult",
    "evaluate", "finetune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name in ("FinetuneResult", "finetune"):
        from xlnet_fast.train.finetune import run

        return getattr(run, name)
    if name in ("EvaluateResult", "evaluate"):
        from xlnet_fast.train.finetune import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
