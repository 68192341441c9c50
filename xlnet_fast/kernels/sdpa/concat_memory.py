"""Next segment's memory in one pass, never building the longer concatenated tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def concat_memory_forward(
    hidden: Sequence[Tensor], memory: Sequence[Tensor] | None, start: int, kept: int, out: Tensor
) -> None:
    """Write rows ``start..`` of [memory; hidden[:kept]] of each layer to ``out`` (layers, ...).

    Memory of another dtype is converted as it is copied.
    """
    length = 0 if memory is None else memory[0].shape[0]
    from_memory = max(0, length - start)
    for number, current in enumerate(hidden):
        if memory is not None and from_memory:
            out[number, :from_memory] = memory[number][start:]
        out[number, from_memory:] = current[max(0, start - length) : kept]
