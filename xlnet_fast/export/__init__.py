"""Exports of a trained XLNet: programs for other processes, ONNX, int8; checked, then written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlnet_fast.export.options import ExportOptions

if TYPE_CHECKING:
    from xlnet_fast.export.int8 import load_int8
    from xlnet_fast.export.run import ExportResult, export

__all__ = ["ExportOptions", "ExportResult", "export", "load_int8"]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: the command line reads the options for ``--help``."""
    if name in ("ExportResult", "export"):
        from xlnet_fast.export import run

        return getattr(run, name)
    if name == "load_int8":
        from xlnet_fast.export.int8 import load_int8

        return load_int8
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
