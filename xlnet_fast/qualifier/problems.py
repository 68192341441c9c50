"""One call of an op with everything that decides whether its result is right.

Of every op there is a class with the three ways to compute it: by the reference, by the public op
of a backend, and by that backend's kernels alone, into tensors with guard bands around them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SENTINEL = 12345.0
"""What guard bands hold; every dtype in question has a number near it."""
MARGIN = 4096
"""Elements on either side of an output: more than a tile of any kernel reaches beyond it."""

Operands = Mapping[str, Tensor]


class Guards:
    """Allocates outputs between bands that nobody may write to, themselves full of NaN."""

    def __init__(self) -> None:
        self._buffers: list[tuple[str, Tensor]] = []

    def like(self, name: str, x: Tensor) -> Tensor:
        """A tensor such as ``torch.empty_like(x)``, strides included."""
        model = torch.empty_like(x)
        return self.empty(name, model.shape, model.stride(), x.dtype, x.device)

    def empty(
        self,
        name: str,
        shape: Sequence[int],
        strides: Sequence[int] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """A tensor without gaps; contiguous where ``strides`` is None."""
        count = int(torch.Size(shape).numel())
        buffer = torch.full((count + 2 * MARGIN,), SENTINEL, dtype=dtype, device=device)
        self._buffers.append((name, buffer))
        inside = buffer[MARGIN : MARGIN + count].fill_(float("nan"))
        if strides is None:
            return inside.view(tuple(shape))
        return inside.as_strided(tuple(shape), tuple(strides))

    def touched(self) -> str | None:
        """The first output around which something was written; None where nothing was."""
        for name, buffer in self._buffers:
            for band in (buffer[:MARGIN], buffer[-MARGIN:]):
                if not torch.equal(band, torch.full_like(band, SENTINEL)):
                    return name
        return None


class Problem(ABC):
    """A call of an op.

    Attributes:
        operands: by name, what has a gradient; without one where the op has none.
        exact: whether a result must be equal to the reference's bit for bit.
    """

    exact = False

    def __init__(self, operands: Operands) -> None:
        self.operands = dict(operands)

    @abstractmethod
    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        """The outputs by the reference, in the dtype of the operands."""

    @abstractmethod
    def run(self, operands: Operands, backend: str) -> tuple[Tensor, ...]:
        """The outputs by the op as its callers reach it."""

    @abstractmethod
    def launch(
        self, backend: str, guards: Guards, grad_outs: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Outputs, and given their gradients those of the operands, by the kernels themselves."""

    def leaves(self) -> dict[str, Tensor]:
        """The operands as leaves of a new graph."""
        return {name: x.detach().requires_grad_() for name, x in self.operands.items()}

    def clean_leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same in any dtype, with 0 in place of NaN, which is what it counts as."""
        return {
            name: x.detach().to(dtype).nan_to_num(0.0).requires_grad_()
            for name, x in self.operands.items()
        }

    def grad_outs(self, seed: int = 7) -> tuple[Tensor, ...]:
        """Random gradients of the outputs, in their dtype."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            outs = self.reference(self.operands)
        return tuple(torch.randn(out.shape, generator=generator).to(out) for out in outs)

    def unread(self, grad_outs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same gradients, with NaN where a kernel has no business to read."""
        return tuple(grad_outs)


def kernels_of(op: str, backend: str) -> ModuleType:
    """The module with the kernels of one op of a backend."""
    return importlib.import_module(f"xlnet_fast.kernels.{backend}.{op}")


def normal(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers of a dtype, on the host."""
    return torch.randn(shape, generator=generator).to(dtype)


def within_nan(x: Tensor, strided: bool) -> Tensor:
    """A copy of (B, S, N, D) amid NaN, so that reading beyond it shows.

    ``strided``: as (B, N, S, D) in memory, with gaps of whole pieces of 16 bytes between rows.
    """
    batch, rows, heads, dim = x.shape
    if strided:
        buffer = x.new_full((batch, heads + 1, rows + 2, dim + 8), float("nan"))
        view = buffer[:, :heads, :rows, :dim].transpose(1, 2)
    else:
        buffer = x.new_full((batch, rows + 2, heads, dim), float("nan"))
        view = buffer[:, :rows]
    return view.copy_(x)


FAR = 2**31
"""Elements: an offset that 32 bits with a sign do not hold."""


def fits_far(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a GPU has the memory for :class:`Far`, and as much again."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return free > 2 * FAR * dtype.itemsize


class Far:
    """Places tensors so that the last element of the first dimension is beyond 2^31 elements.

    They share one buffer, of which little is ever touched.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty(FAR + 2**24, dtype=dtype, device=device)
        self._used = 0

    def place(self, x: Tensor) -> Tensor:
        """A copy of a tensor with two elements in its first dimension."""
        count = x[0].numel()
        strides = (FAR, *x[0].contiguous().stride())
        view = self._buffer.as_strided(x.shape, strides, self._used)
        self._used += -(-count // 64) * 64
        return view.copy_(x)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor on a device; anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal, NaN to NaN included."""
    first, second = (x.detach().contiguous().flatten() for x in (a, b))
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))
