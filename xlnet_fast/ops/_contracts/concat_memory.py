"""torch.library contract of concat_memory, of all layers at once.

An op may not return tensors that share storage, and one allocation per layer is what this op is to
avoid: it returns the layers stacked, and its caller takes views.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cuda import concat_memory as cuda_memory
from xlnet_fast.kernels.sdpa import concat_memory as sdpa_memory
from xlnet_fast.ops._contracts._registry import LIBRARY, launch, register

# An empty list of memory stands for none.
LIBRARY.define(
    "concat_memories(Tensor[] hidden, Tensor[] memory, SymInt start, SymInt kept, str backend) "
    "-> Tensor"
)


def _new_memories(
    hidden: Sequence[Tensor], memory: Sequence[Tensor], start: int, kept: int, backend: str
) -> Tensor:
    rows = kept - start + (memory[0].shape[0] if memory else 0)
    return hidden[0].new_empty(len(hidden), rows, *hidden[0].shape[1:])


def _kernels(backend: str) -> ModuleType:
    """The module that has the kernels of a backend."""
    if backend == "sdpa":
        return sdpa_memory
    if backend == "triton":
        from xlnet_fast.kernels.triton import concat_memory as triton_memory

        return triton_memory
    if backend == "cuda":
        return cuda_memory
    raise BackendUnavailable(f"no registered backend {backend!r} of concat_memory")


def concat_memories(
    hidden: Sequence[Tensor], memory: Sequence[Tensor], start: int, kept: int, backend: str
) -> Tensor:
    """The op."""
    out = _new_memories(hidden, memory, start, kept, backend)
    arguments = (hidden, memory or None, start, kept, out)
    launch(backend, lambda name: _kernels(name).concat_memory_forward(*arguments))
    return out


register("concat_memories", concat_memories, _new_memories)
