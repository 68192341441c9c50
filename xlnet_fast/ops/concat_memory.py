"""The next segment's memory: ``cache_mem`` of HF, without keeping the longer tensor alive."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast import reference
from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops import _contracts as _contracts  # registers the ops
from xlnet_fast.ops._dispatch import Request, choose
from xlnet_fast.ops._validation import check_float, check_same, check_shape, check_tensor


def concat_memory(
    hidden: Tensor,
    memory: Tensor | None = None,
    mem_len: int | None = None,
    reuse_len: int | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """The last ``mem_len`` rows of ``[memory; hidden[:reuse_len]]``, detached (HF ``cache_mem``).

    Args:
        hidden: (I, B, H) hidden states of this segment, any floating dtype.
        memory: (M, B, H) memory before this segment, or None.
        mem_len: rows kept, at least 0; None or 0 keeps all.
        reuse_len: only so many first rows of ``hidden`` are remembered; None or 0 means all.
        backend: "auto" or a backend's name.

    Returns:
        (min(mem_len, M + min(reuse_len, I)), B, H), a new tensor that shares no storage.

    Raises:
        ShapeError: wrong rank, or (B, H) differ. ArgumentError: wrong dtype, device or length.
        BackendUnavailable: the named backend cannot run here.
    """
    check_tensor("hidden", hidden, 3, "I, B, H")
    check_float("hidden", hidden)
    if memory is not None:
        check_tensor("memory", memory, 3, "M, B, H")
        check_shape("memory", memory, (memory.shape[0], *hidden.shape[1:]), "M, B, H")
        check_same("hidden", hidden, {"memory": memory})
    for name, value in (("mem_len", mem_len), ("reuse_len", reuse_len)):
        if value is not None and value < 0:
            raise ArgumentError(f"{name} is {value}, expected None or a number of rows >= 0")
    choice = choose(Request("concat_memory", hidden.device.type, hidden.dtype), backend)
    if choice.backend == "reference":
        return reference.concat_memory(hidden, memory, mem_len, reuse_len)
    kept = min(hidden.shape[0], reuse_len) if reuse_len else hidden.shape[0]
    total = kept if memory is None else kept + memory.shape[0]
    start = max(0, total - mem_len) if mem_len else 0
    with torch.no_grad():
        result: Tensor = torch.ops.xlnet_fast.concat_memory(hidden, memory, start, kept)
    return result
