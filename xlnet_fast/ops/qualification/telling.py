"""Warnings that a process gives once."""

from __future__ import annotations

import warnings

from xlnet_fast.builder import recipe
from xlnet_fast.errors import PerformanceWarning

_told: set[str] = set()


def warn_once(message: str) -> None:
    """Once in this process for each message, unless ``XLNET_FAST_NO_WARN`` is set."""
    if message in _told or recipe.is_set("XLNET_FAST_NO_WARN"):
        return
    _told.add(message)
    warnings.warn(message, PerformanceWarning, stacklevel=3)
