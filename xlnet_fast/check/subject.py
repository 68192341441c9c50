"""What a family's models are compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRAINING = "training step"

Results = dict[str, Tensor]
Computation = Callable[[nn.Module, int], Results]
"""Of a model and the number of a batch."""


class Subject(Protocol):
    """Computations of a model, and what else a check must know of it.

    Attributes:
        head_dim: of its attention.
        computations: by name; :data:`TRAINING` is the one with gradients.
    """

    head_dim: int
    computations: dict[str, Computation]

    @property
    def training_batches(self) -> int:
        """How many batches of training make a fair yardstick."""

    def op_of(self, computation: str) -> str:
        """The op that decides which backends can run it."""

    def mended(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Hugging Face's model, where its own code would raise in ``dtype``."""


def random(seed: int) -> torch.Generator:
    """The same numbers for every model."""
    return torch.Generator().manual_seed(seed)
