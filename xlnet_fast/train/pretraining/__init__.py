"""Pretraining XLNet by permutation language modelling, and Transformer-XL by the next token.

Text, parallel streams of it, a trainer that carries memory, and the run are the same for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.train.pretraining.options import PretrainOptions

if TYPE_CHECKING:
    from xlnet_fast.train.pretraining.run import PretrainResult, pretrain

__all__ = ["PretrainOptions", "PretrainResult", "pretrain"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name in ("PretrainResult", "pretrain"):
        from xlnet_fast.train.pretraining import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
