"""Linear layers by the C++ kernels: from tensors to addresses and strides.

The kernels are in ``csrc/cpu/linear_tiles.h``. Their sums are short, so they round less than either
library of PyTorch's; they give the same bits on any number of threads.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu.addresses import DTYPES
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set

FEW_ROWS = 48
"""So few are multiplied without packing the weight: one less than ``kLeastPackedRows``."""


def takes(dtype: torch.dtype, terms: int) -> bool:
    """Whether there is a kernel for sums of so many products of this dtype.

    fp32 always; bf16 in pairs, where one instruction multiplies them; needs the extension.
    """
    if dtype == torch.bfloat16 and terms % 2:
        return False
    return dtype in DTYPES and _has_kernel(dtype, instruction_set())


@functools.cache
def _has_kernel(dtype: torch.dtype, isa: str) -> bool:
    return _extension.require().linear_takes(DTYPES[dtype], isa)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    out: Tensor,
) -> None:
    """Fill ``out`` with x W^T + b, then GELU of that or with ``residual`` added.

    Operands that do not lie as the kernels want them are copied.

    Args:
        x: (rows, in), on the CPU as all others, of a dtype that :func:`takes` takes.
        weight: (out, in). bias: (out) or None. residual: (rows, out) or None.
        gelu: whether to apply the exact GELU; not together with ``residual``.
        out: (rows, out), contiguous; none of its sizes 0.

    Raises:
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    rows, terms = x.shape
    columns = weight.shape[0]
    _check(x, weight, bias, residual, out)
    x = _in_order(x, other_too=x.dtype == torch.float32)
    weight = _in_order(weight, other_too=True)
    bias = None if bias is None else bias.contiguous()
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    arguments = {
        "dtype": DTYPES[x.dtype], "rows": rows, "terms": terms, "columns": columns,
        "x": x.data_ptr(), "x_row": x.stride(0), "x_term": x.stride(1),
        "weight": weight.data_ptr(),
        "weight_column": weight.stride(0), "weight_term": weight.stride(1),
        "bias": None if bias is None else bias.data_ptr(),
        "residual": None if residual is None else residual.data_ptr(),
        "residual_row": 0 if residual is None else residual.stride(0),
        "out": out.data_ptr(), "out_row": columns, "gelu": gelu,
    }  # fmt: skip
    _extension.require().linear(arguments, torch.get_num_threads(), instruction_set())


def _in_order(x: Tensor, other_too: bool) -> Tensor:
    """A matrix whose rows, or with ``other_too`` columns, are dense and follow one another."""
    if x.is_contiguous() or (other_too and x.t().is_contiguous()):
        return x
    return x.contiguous()


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor
) -> None:
    rows, terms = x.shape
    columns = weight.shape[0]
    expected = {
        "weight": (weight, (columns, terms)),
        "bias": (bias, (columns,)),
        "residual": (residual, (rows, columns)),
        "out": (out, (rows, columns)),
    }
    if not takes(x.dtype, terms):
        raise ArgumentError(f"no kernel here for sums of {terms} products of {x.dtype}")
    for name, (t, shape) in {"x": (x, (rows, terms)), **expected}.items():
        if t is None:
            continue
        if tuple(t.shape) != shape or t.numel() == 0:
            raise ShapeError(f"{name} has shape {tuple(t.shape)}, expected {shape} without a zero")
        if t.dtype != x.dtype or t.device.type != "cpu":
            raise ArgumentError(
                f"{name} has dtype {t.dtype} on {t.device}, expected {x.dtype} on the CPU"
            )
    if not out.is_contiguous():
        raise ArgumentError("out is not contiguous")
