"""Next segment's memory in one pass, never building the longer concatenated tensor.

All layers are copied by one call of PyTorch, which on a GPU takes few launches for dense tensors
(`benchmarks/harness/multi_tensor.py` counts them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def concat_memory_forward(
    hidden: Sequence[Tensor], memory: Sequence[Tensor] | None, start: int, kept: int, out: Tensor
) -> None:
    """Write rows ``start..`` of [memory; hidden[:kept]] of each layer to ``out`` (layers, ...).

    Memory of another dtype is converted as it is copied.
    """
    length = 0 if memory is None else memory[0].shape[0]
    from_memory = max(0, length - start)
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    if memory is not None and from_memory:
        targets += out[:, :from_memory].unbind()
        sources += [x[start:] for x in memory]
        if memory[0].dtype != hidden[0].dtype:  # one launch has one dtype to read
            torch._foreach_copy_(targets, sources)
            targets, sources = [], []
    targets += out[:, from_memory:].unbind()
    sources += [x[max(0, start - length) : kept] for x in hidden]
    torch._foreach_copy_(targets, sources)
