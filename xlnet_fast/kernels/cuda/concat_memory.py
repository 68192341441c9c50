"""The next segment's memory of all layers by the CUDA C++ kernel, ``csrc/cuda/concat_memory.cuh``.

Letters: M rows of memory, K first rows of the hidden states that are remembered, W = B * H elements
a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.cuda import entries, why_unavailable
from xlnet_fast.kernels.cuda.memory import DTYPES, Memory
from xlnet_fast.operands import check_memories

MAX_LAYERS = 32  # ConcatMemoryParams::kMaxLayers in csrc/params.h


@torch.no_grad()
def concat_memory_forward(
    hidden: Sequence[Tensor],
    memory: Sequence[Tensor] | None,
    start: int,
    kept: int,
    out: Tensor,
) -> None:
    """Fill ``out[l]`` with rows ``start ..`` of ``[memory[l]; hidden[l][:kept]]`` for every layer.

    Args:
        hidden: one (I, B, H) tensor per layer, of one shape and dtype: fp32, bf16 or fp16.
        memory: one (M, B, H) tensor per layer, of one shape and one of these dtypes, or None.
        start: rows left out at the beginning, 0..M + kept.
        kept: rows of ``hidden`` that count, 0..I.
        out: (layers, M + kept - start, B, H), contiguous, dtype of ``hidden``, written in full.

    Raises:
        BackendUnavailable: no kernels, or no GPU that runs them.
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    reason = why_unavailable(out.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    check_memories(hidden, memory, start, kept, out)
    if out.numel() == 0:
        return
    if memory is not None and memory[0].numel() == 0:
        memory = None
    for x in (hidden[0], *(memory or ())[:1]):
        if x.dtype not in DTYPES:
            raise ArgumentError(f"backend cuda copies float32, bfloat16 and float16, not {x.dtype}")
    width = out.shape[2] * out.shape[3]
    for first in range(0, len(hidden), MAX_LAYERS):
        part = slice(first, first + MAX_LAYERS)
        addresses = Memory()
        arguments = {
            "dtype": DTYPES[out.dtype],
            "memory_dtype": DTYPES[out.dtype if memory is None else memory[0].dtype],
            "first": start * width,
            "boundary": 0 if memory is None else memory[0].shape[0] * width,
            "count": out[0].numel(),
            "hidden": [addresses.flat(x) for x in hidden[part]],
            "memory": [] if memory is None else [addresses.flat(x) for x in memory[part]],
            "out": addresses.flat(out[part], writable=True),
        }
        entries.call("concat_memory_forward", addresses, out.device, arguments)
