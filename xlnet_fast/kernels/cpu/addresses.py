"""Tensors as the compiled entries take them: an address and the strides of the first dimensions."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Dtype of csrc/params.h


class Addresses:
    """Addresses of tensors, and of copies where a tensor's layout does not suit; keeps both alive.

    An entry may use an address for as long as this object lives.
    """

    def __init__(self) -> None:
        self._alive: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._narrow: dict[Hashable, int | None] = {}

    def view(self, x: Tensor | None) -> tuple[int, ...] | None:
        """Address and strides of a tensor whose last dimension is contiguous, or of a copy.

        None for None and for an empty tensor.
        """
        if x is None or x.numel() == 0:
            return None
        strides = x.stride()
        if strides[-1] != 1 and x.shape[-1] > 1:
            x = x.contiguous()
            strides = x.stride()
        self._alive.append(x)
        return (x.data_ptr(), *strides[:-1])

    def output(self, x: Tensor | None) -> tuple[int, ...] | None:
        """As :meth:`view`, of a tensor to be filled; :meth:`write_back` fills it from a copy."""
        if x is not None and x.stride(-1) != 1 and x.shape[-1] > 1:
            home, x = x, torch.empty_like(x, memory_format=torch.contiguous_format)
            self._copies.append((home, x))
        return self.view(x)

    def write_back(self) -> None:
        """Bring the values of copied outputs home."""
        for home, copy in self._copies:
            home.copy_(copy)

    def integers(self, name: str, x: Tensor | None) -> int | None:
        """Address of a contiguous int32 copy, or None.

        Raises:
            ArgumentError: a number does not fit 32 bits.
        """
        if x is None:
            return None
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if place not in self._narrow:  # segments of keys are those of queries, without memory
            narrow = x.to(torch.int32)
            if x.dtype != torch.int32 and bool((narrow != x).any()):
                raise ArgumentError(
                    f"{name} holds numbers beyond 32 bits, from {int(x.min())} to {int(x.max())}: "
                    f"backend cpu takes those of int32"
                )
            self._alive.append(x)  # so that nothing else lies there
            self._narrow[place] = self.flat(narrow)
        return self._narrow[place]

    def flat(self, x: Tensor | None) -> int | None:
        """Address of a contiguous tensor or copy, or None."""
        if x is None:
            return None
        x = x.contiguous()
        self._alive.append(x)
        return x.data_ptr()
