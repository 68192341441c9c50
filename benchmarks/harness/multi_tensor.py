"""How many kernels PyTorch launches on a GPU for a copy of many tensors, ``torch._foreach_copy_``.

As ATen does it (2.13: `ForeachBinaryOpList.cu`, `ForeachUtils.h`, `MultiTensorApply.cuh`): tensors
are cut into chunks of 65,536 elements, a thread block each, and a launch takes as many tensors and
blocks as its argument describes, which is 4 KiB where PyTorch was built with CUDA 12 and 32 KiB
with CUDA 13, as the wheels of PyPI are from 2.11 on. Pairs that are not alike are copied one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

CHUNK_ELEMENTS = 65_536


@dataclass(frozen=True)
class Limits:
    """What one launch takes of pairs of tensors, and of their chunks."""

    tensors: int
    blocks: int


LIMITS = {12: Limits(64, 320), 13: Limits(448, 2240)}
"""By the version of CUDA that PyTorch was built with."""


def copy_launches(targets: Sequence[Tensor], sources: Sequence[Tensor], cuda: int = 13) -> int:
    """Launches of ``torch._foreach_copy_(targets, sources)``.

    Args:
        cuda: of `LIMITS`.
    """
    if not _are_alike(targets, sources):
        return sum(target.numel() > 0 for target in targets)
    limits = LIMITS[cuda]
    launches = tensors = blocks = 0
    for target in targets:
        chunks = -(-target.numel() // CHUNK_ELEMENTS)
        tensors += chunks > 0
        for chunk in range(chunks):
            blocks += 1
            is_last = chunk == chunks - 1
            if blocks == limits.blocks or (is_last and tensors == limits.tensors):
                launches += 1
                blocks = 0
                tensors = 0 if is_last else 1  # the rest of it is described again
    return launches + (blocks > 0)


def _are_alike(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Whether one kernel takes them all: a device, a dtype a list, dense, the same layout by pair.

    Where a dimension has one element its stride says nothing.
    """
    lists = (targets, sources)
    if len({x.device for each in lists for x in each}) > 1:
        return False
    if any(len({x.dtype for x in each}) > 1 for each in lists):
        return False
    return all(
        _is_dense(target) and target.shape == source.shape and _layout(target) == _layout(source)
        for target, source in zip(targets, sources, strict=True)
    )


def _layout(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1]


def _is_dense(x: Tensor) -> bool:
    """Whether its elements are a stretch of memory, in some order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
