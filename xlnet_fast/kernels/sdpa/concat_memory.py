"""Next segment's memory in one pass, never building the longer concatenated tensor."""

from __future__ import annotations

from torch import Tensor


def concat_memory_forward(
    hidden: Tensor, memory: Tensor | None, start: int, kept: int, out: Tensor
) -> None:
    """Write rows ``start..`` of [memory; hidden[:kept]] to ``out``, without the longer tensor."""
    length = 0 if memory is None else memory.shape[0]
    from_memory = max(0, length - start)
    if memory is not None and from_memory:
        out[:from_memory] = memory[start:]
    out[from_memory:] = hidden[max(0, start - length) : kept]
