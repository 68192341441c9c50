"""Tensors as the compiled entries take them: an address and the strides of the first dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.masks import AttentionMask

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Dtype of csrc/params.h

ALIGNMENT = 16
"""Bytes: kernels move rows of elements in pieces of so many, each at a multiple of it."""


def why_unreadable(x: Tensor) -> str | None:
    """Why the strides of `x` do not let its rows, the last dimension, be moved in whole pieces.

    None where they do, whatever its address.
    """
    pieces = ALIGNMENT // x.element_size()
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        return f"its last dimension has stride {x.stride(-1)}, expected 1; .contiguous() mends it"
    strides = [x.stride(dim) for dim in range(x.dim() - 1) if x.shape[dim] > 1]
    if any(stride % pieces != 0 for stride in strides):
        return (
            f"its rows do not begin at multiples of {ALIGNMENT} bytes (strides "
            f"{tuple(x.stride())}); .contiguous() mends it"
        )
    return None


def why_misaligned(x: Tensor) -> str | None:
    """Why the rows of `x` cannot be moved in whole pieces where they lie; None if they can.

    Looks at strides and storage offset only, so it works on fake tensors too; while torch.compile
    traces, which knows of no storage, at strides.
    """
    reason = why_unreadable(x)
    if reason is not None or torch.compiler.is_compiling():
        return reason
    if x.storage_offset() * x.element_size() % ALIGNMENT != 0:
        return (
            f"it does not begin at a multiple of {ALIGNMENT} bytes (storage offset "
            f"{x.storage_offset()}); .clone() mends it"
        )
    return None


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy whose rows can be moved in whole pieces; heads that are one share one copy."""
    if why_unreadable(x) is None and x.data_ptr() % ALIGNMENT == 0:
        return x
    if x.dim() == 4 and x.shape[2] > 1 and x.stride(2) == 0:
        return aligned(x[:, :, :1]).expand_as(x)
    return x.clone(memory_format=torch.contiguous_format)


def window(mask: AttentionMask, keys: int, current: int) -> dict[str, int]:
    """Fields of a mask's window in csrc/params.h: no number is larger than that of the keys."""
    left, right, chunk = mask.limits
    return {
        "window_left": min(left, keys),
        "window_right": min(right, keys),
        "chunk": max(1, min(chunk, current)),
    }


class Memory:
    """Tensors of one call, kept alive while it is made."""

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, bool]] = []

    def view(self, x: Tensor | None, writable: bool = False) -> tuple[int, ...] | None:
        """Address and strides of all dimensions but the last; None for None and for no element.

        The stride of a dimension of one element is 0, whatever the tensor says.
        """
        if x is None or x.numel() == 0:
            return None
        self._tensors.append((x, writable))
        strides = (x.stride(dim) if x.shape[dim] > 1 else 0 for dim in range(x.dim() - 1))
        return (x.data_ptr(), *strides)

    def output(self, x: Tensor | None) -> tuple[int, ...] | None:
        """As :meth:`view`, of a tensor that the kernel fills."""
        return self.view(x, writable=True)

    def flat(self, x: Tensor | None, writable: bool = False) -> int | None:
        """Address of a contiguous tensor, or of a copy of one that is only read; None for None."""
        if x is None:
            return None
        if not writable:
            x = x.contiguous()
        self._tensors.append((x, writable))
        return x.data_ptr()

    def integers(self, x: Tensor | None) -> int | None:
        """Address of a contiguous int32 copy, or of the tensor if it is one; None for None."""
        return None if x is None else self.flat(x.to(torch.int32))

    def regions(self) -> list[tuple[int, int, bool]]:
        """First address, one past the last, and whether it may be written, of every tensor."""
        found = []
        for x, writable in self._tensors:
            last = sum(
                (size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)
            )
            end = x.data_ptr() + (last + 1) * x.element_size()
            found.append((x.data_ptr(), end if x.numel() else x.data_ptr(), writable))
        return found
