"""Whether an answer can be sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def is_plain(value: Any) -> bool:
    """Whether a value is JSON: every number in it is finite, however deep."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, int))
