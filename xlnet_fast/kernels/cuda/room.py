"""Up to which head dim the attention kernels have room in the shared memory of a chip's blocks.

What a kernel needs, its own sources say (`AttentionShape` in ``csrc/cuda/kernels.h``): there is no
second copy of these numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from xlnet_fast.kernels.chips import SHARED_LIMITS
from xlnet_fast.kernels.cuda import entries
from xlnet_fast.transforms import constant_when_traced

ANY = 2**31


class Shape(NamedTuple):
    """Shared memory that a block of an attention kernel needs, bytes."""

    kernel: str
    backward: bool
    head_dim: int  # the largest that the tile holds
    ample: int  # what it takes where it can
    scarce: int  # the least that it runs with


def shapes() -> list[Shape]:
    """Those of all attention kernels that are compiled in.

    Raises:
        BackendUnavailable: the extension is missing.
    """
    return [Shape(**one) for one in entries.ask("attention_shapes")]


def largest_head_dim(table: list[Shape], limit: int, backward: bool) -> int:
    """The largest head dim that a pass takes with `limit` bytes a block; 0 where it takes none.

    Args:
        table: as of :func:`shapes`.
        limit: shared memory that a block may have, bytes.
        backward: whether the backward pass, which needs a forward pass before, is meant.
    """
    largest = 0
    for head_dim in sorted({shape.head_dim for shape in table}):
        of_tile = [shape for shape in table if shape.head_dim == head_dim]
        if any(shape.scarce > limit for shape in of_tile if backward or not shape.backward):
            break
        largest = head_dim
    return largest


def shared_limit(gpu: str | None) -> int | None:
    """Shared memory that a block may have on chips of a compute capability, bytes.

    A chip that `chips.CHIPS` lacks is asked itself, if CUDA runs in this process already. None
    where nobody knows.

    Args:
        gpu: compute capability, "8.6", or None for the emulation.
    """
    if gpu is None:
        return cast(int, entries.ask("shared_limit")) if entries.emulated() else None
    known = SHARED_LIMITS.get(int(gpu.replace(".", "")))
    if known is not None or not torch.cuda.is_initialized():
        return known
    for index in range(torch.cuda.device_count()):
        if gpu == "{}.{}".format(*torch.cuda.get_device_capability(index)):
            properties: Any = torch.cuda.get_device_properties(index)  # its stub lacks the field
            return int(properties.shared_memory_per_block_optin)
    return None


def why_too_small(gpu: str | None, head_dim: int, needs_grad: bool) -> str | None:
    """Why a chip has no room for a head dim; None where it has, or where nobody knows.

    Traceable by torch.compile: what depends on the machine is a constant to it.

    Args:
        gpu: as of :func:`shared_limit`.
        head_dim: at most that of the largest tile.
        needs_grad: whether the backward pass is to run too.
    """
    if head_dim <= _largest(gpu, needs_grad):
        return None
    return f"{_what_fits(gpu)}, and not for {head_dim}{' with a gradient' if needs_grad else ''}"


@constant_when_traced
def _largest(gpu: str | None, backward: bool) -> int:
    limit = shared_limit(gpu)
    return ANY if limit is None else largest_head_dim(shapes(), limit, backward)


@constant_when_traced
def _what_fits(gpu: str | None) -> str:
    forward, backward = _largest(gpu, False), _largest(gpu, True)
    where = "the emulated GPU" if gpu is None else f"compute capability {gpu}"
    return (
        f"a block on {where} may have {shared_limit(gpu)} bytes of shared memory: room for head "
        f"dims up to {forward}, with a gradient up to {backward}"
    )
