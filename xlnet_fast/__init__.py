"""Fast XLNet and Transformer-XL attention: drop-in acceleration of Hugging Face's models.

    import xlnet_fast
    xlnet_fast.accelerate(model)      # in place; same checkpoint, arguments and outputs
    print(xlnet_fast.explain(model))  # which backend runs each op here, and why
    xlnet_fast.restore(model)         # exact undo

The ops stand alone in ``xlnet_fast.ops``. If torch was imported before, they are registered with it
here already, so that programs that were exported or traced with them can be loaded.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xlnet_fast._version import __version__
from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError, XLNetFastError

if TYPE_CHECKING:
    from xlnet_fast.hf import (
        Explanation,
        Memory,
        accelerate,
        disable,
        enable,
        explain,
        is_accelerated,
        linear_attention,
        restore,
        to_mems,
    )
    from xlnet_fast.masks import AttentionMask
    from xlnet_fast.qualifier import qualify

_HF_NAMES = (
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
)

__all__ = [
    "ArgumentError",
    "AttentionMask",
    "BackendUnavailable",
    "Explanation",
    "Memory",
    "ShapeError",
    "XLNetFastError",
    "__version__",
    "accelerate",
    "disable",
    "enable",
    "explain",
    "is_accelerated",
    "linear_attention",
    "qualify",
    "restore",
    "to_mems",
]


def __getattr__(name: str) -> Any:
    """Load what needs transformers, or torch, on first use: ``import xlnet_fast`` stays cheap."""
    if name in _HF_NAMES:
        from xlnet_fast import hf

        return getattr(hf, name)
    if name == "AttentionMask":
        from xlnet_fast.masks import AttentionMask

        return AttentionMask
    if name == "qualify":
        from xlnet_fast.qualifier import qualify

        return qualify
    if name == "tpu":
        return import_module("xlnet_fast.tpu")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if "torch" in sys.modules:  # else this import would take as long as that of torch
    import_module("xlnet_fast.ops")
