"""A provider ready to run one case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Tensors = list[Tensor]


@dataclass(frozen=True)
class Work:
    """A provider ready to run a case.

    run: what is timed. result: what is checked, by default what `run` returns; untimed.
    """

    run: Callable[[], Any]
    result: Callable[[], Tensors]
