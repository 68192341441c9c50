"""Cells of the tables in Markdown pages, "-" where there is nothing to say."""

from __future__ import annotations

from collections.abc import Sequence

from ..harness.record import Row
from .table import time_text


def joined(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def time_cell(row: Row | None) -> str:
    """Return milliseconds, or why there are none."""
    if row is None:
        return "-"
    return time_text(row.p50_us) if row.status == "ok" else row.status.replace("_", " ")


def memory_cell(row: Row | None) -> str:
    """Return the peak memory in MiB."""
    return f"{row.peak_memory_mib:,.0f}" if row and row.peak_memory_mib is not None else "-"


def error_cell(ours: Row | None, eager: Row | None) -> str:
    """Return our error, and Hugging Face's in brackets."""
    if ours is None or ours.error is None or eager is None or eager.error is None:
        return ""
    return f"{ours.error:.1e} ({eager.error:.1e})"
