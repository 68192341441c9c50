"""torch.library contract of concat_memory."""

from __future__ import annotations

from torch import Tensor

from xlnet_fast.kernels.sdpa import concat_memory as sdpa_memory
from xlnet_fast.ops._contracts._registry import LIBRARY, register

LIBRARY.define("concat_memory(Tensor hidden, Tensor? memory, SymInt start, SymInt kept) -> Tensor")


def _new_memory(hidden: Tensor, memory: Tensor | None, start: int, kept: int) -> Tensor:
    length = kept if memory is None else kept + memory.shape[0]
    return hidden.new_empty(length - start, *hidden.shape[1:])


def _concat_memory(hidden: Tensor, memory: Tensor | None, start: int, kept: int) -> Tensor:
    out = _new_memory(hidden, memory, start, kept)
    sdpa_memory.concat_memory_forward(hidden, memory, start, kept, out)
    return out


register("concat_memory", _concat_memory, _new_memory)
