"""Whether results and answers are numbers, so that they may be sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def is_finite(value: Any) -> bool:
    """Whether no number in a result is NaN or plus infinity, however deep.

    Minus infinity is how a task may mark what cannot be chosen.
    """
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return True
        return not bool((value.isnan() | value.isposinf()).any())
    if isinstance(value, float):
        return not math.isnan(value) and value != math.inf
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    if hasattr(value, "__dict__"):
        return all(map(is_finite, vars(value).values()))
    return True


def is_plain(value: Any) -> bool:
    """Whether an answer can be sent as JSON: every number in it is finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, int))
