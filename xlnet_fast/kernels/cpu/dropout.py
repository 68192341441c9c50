"""Dropout by the C++ kernels: from tensors to addresses.

The kernels are in ``csrc/cpu/dropout_rows.h``; they read x once, write the result once, make the
mask on the way and give the same bits on any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu.addresses import DTYPES
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.philox import keep_threshold


def dropout(x: Tensor, p: float, seed: int, out: Tensor) -> None:
    """Fill ``out`` with x / (1 - p) where ``philox.keep_mask`` keeps it, else with 0.

    Args:
        x: (..., width), fp32, bf16 or fp16, on the CPU; copied where it is not contiguous.
        p: 0 <= p < 1. seed: int64, the mask's: of one batch element, one head, as many rows as x
            has, and ``width`` keys.
        out: as x, contiguous; none of its sizes 0, and no memory of x's.

    Raises:
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    _check(x, out)
    x = x.resolve_neg().contiguous()
    width = x.shape[-1]
    arguments = {
        "dtype": DTYPES[x.dtype], "rows": x.numel() // width, "width": width,
        "x": x.data_ptr(), "out": out.data_ptr(),
        "keep_from": keep_threshold(p), "keep_scale": 1.0 / (1.0 - p), "seed": seed % 2**64,
    }  # fmt: skip
    _extension.require().dropout(arguments, torch.get_num_threads(), instruction_set())


def _check(x: Tensor, out: Tensor) -> None:
    for name, t in (("x", x), ("out", out)):
        if t.device.type != "cpu" or t.dtype not in DTYPES:
            raise ArgumentError(
                f"{name} has dtype {t.dtype} on {t.device}, "
                f"expected float32, bfloat16 or float16 on the CPU"
            )
    if out.dtype != x.dtype:
        raise ArgumentError(f"out has dtype {out.dtype}, expected {x.dtype} as x has")
    if x.dim() == 0 or x.numel() == 0:
        raise ShapeError(f"x has shape {tuple(x.shape)}, expected (..., width) without a zero")
    if out.shape != x.shape:
        raise ShapeError(f"out has shape {tuple(out.shape)}, expected {tuple(x.shape)}")
    if not out.is_contiguous():
        raise ArgumentError("out is not contiguous")
