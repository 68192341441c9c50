"""The next segment's memory of all layers in one launch: a copy, without the longer tensor.

Letters: M rows of memory, K first rows of the hidden states that are remembered, W = B * H elements
a row. Layer l writes rows start .. M + K - 1 of [memory_l; hidden_l[:K]]; as rows are dense that is
one run of elements,

    out[l, e] = memory_l[e + start * W]              where e + start * W < M * W
                hidden_l[e + (start - M) * W]        elsewhere

A program copies one block of one layer. The layers' tensors stand in two tuples of pointers, from
which it picks its own: nothing has to be stacked first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.triton import jit, tl, why_unavailable
from xlnet_fast.kernels.triton.compilation import DTYPES, Compilation
from xlnet_fast.kernels.triton.compiling import run_kernel
from xlnet_fast.operands import check_memories

MAX_LAYERS = 32  # per launch: a kernel's arguments are limited to 4 KiB
BLOCK = 2048  # elements: 128 threads with 16
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": 255}


@jit()
def _copy_kernel(
    hidden, memory,  # a tensor (I, B, H) and (M, B, H) for each layer; memory None without
    out,  # (layers, rows, B, H)
    first, boundary, count,  # elements: start * W, M * W, (M + K - start) * W
    BLOCK: tl.constexpr,
):  # fmt: skip
    i_layer = tl.program_id(1)
    i_from = tl.program_id(0).to(tl.int64) * BLOCK  # in the layer's output
    i_joined = i_from + first  # in [memory; hidden]
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < count - i_from

    p_hidden = hidden[0]
    for layer in tl.static_range(1, len(hidden)):
        p_hidden = tl.where(i_layer == layer, hidden[layer], p_hidden)
    if memory is None:
        # [BLOCK]
        b_x = tl.load(p_hidden + i_joined + o_e, mask=m_e)
    else:
        p_memory = memory[0]
        for layer in tl.static_range(1, len(hidden)):
            p_memory = tl.where(i_layer == layer, memory[layer], p_memory)
        m_memory = o_e < boundary - i_joined
        # [BLOCK]
        b_memory = tl.load(p_memory + i_joined + o_e, mask=m_e & m_memory)
        b_hidden = tl.load(p_hidden + (i_joined - boundary) + o_e, mask=m_e & (m_memory == 0))
        b_x = tl.where(m_memory, b_memory.to(out.dtype.element_ty), b_hidden)
    tl.store(out + i_layer.to(tl.int64) * count + i_from + o_e, b_x, mask=m_e)


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
        hidden: one (I, B, H) tensor per layer, of one shape and floating dtype.
        memory: one (M, B, H) tensor per layer, of one shape and floating dtype, or None.
        start: rows left out at the beginning, 0..M + kept.
        kept: rows of ``hidden`` that count, 0..I.
        out: (layers, M + kept - start, B, H), contiguous, dtype of ``hidden``, written in full.

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError: a dtype, device or number that the kernel does not take. ShapeError: shapes
            that do not agree.
    """
    reason = why_unavailable(out.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    check_memories(hidden, memory, start, kept, out)
    if out.numel() == 0:
        return
    if memory is not None and memory[0].numel() == 0:
        memory = None
    width = out.shape[2] * out.shape[3]
    rows = 0 if memory is None else memory[0].shape[0]
    count = out.shape[1] * width
    device = out.device
    with torch.cuda.device(device) if out.is_cuda else contextlib.nullcontext():
        for first in range(0, len(hidden), MAX_LAYERS):
            part = slice(first, first + MAX_LAYERS)
            layers = tuple(x.contiguous() for x in hidden[part])
            earlier = None if memory is None else tuple(x.contiguous() for x in memory[part])
            run_kernel(
                _copy_kernel, (-(-count // BLOCK), len(layers)),
                layers, earlier, out[part], start * width, rows * width, count,
                BLOCK=BLOCK, **OPTIONS,
            )  # fmt: skip


def compilations(arch: int) -> Iterator[Compilation]:
    """The copy of the most layers, with and without memory, also of another dtype."""
    for dtype in DTYPES:
        for features, kind in (("first segment", None), ("memory", dtype), ("cast", "fp32")):
            if features == "cast" and dtype == "fp32":
                continue  # fp32 from fp32 is no conversion
            types: dict[str, Any] = {
                "hidden": (f"*{dtype}",) * MAX_LAYERS,
                "memory": None if kind is None else (f"*{kind}",) * MAX_LAYERS,
                "out": f"*{dtype}",
                **dict.fromkeys(("first", "boundary", "count"), "i32"),
            }
            yield Compilation(
                kernel="concat_memory",
                variant=f"{MAX_LAYERS} layers",
                features=features,
                dtype=dtype,
                head_dim=None,
                function=_copy_kernel,
                types=types,
                constants={"BLOCK": BLOCK},
                options=OPTIONS,
                tile=(BLOCK,),
            )
