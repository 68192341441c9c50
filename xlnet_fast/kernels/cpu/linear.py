"""Linear layers by the C++ kernels: from tensors to addresses and strides.

The kernels are in ``csrc/cpu/linear_{few_rows,tiles}.h``. Their sums are short, so they round less
than either library of PyTorch's; they give the same bits on any number of threads.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu.addresses import DTYPES
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set

FEW_ROWS = 96
"""So few are multiplied without packing the weight: one less than ``kLeastPackedRows``. A row's
result then has the same bits whatever other rows there are."""


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
    _extension.require().linear(
        DTYPES[x.dtype], rows, terms, columns,
        x.data_ptr(), x.stride(0), x.stride(1),
        weight.data_ptr(), weight.stride(0), weight.stride(1),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        out.data_ptr(), columns, gelu, torch.get_num_threads(), instruction_set(),
    )  # fmt: skip


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
    dtype = x.dtype
    if not takes(dtype, terms):
        raise ArgumentError(f"no kernel here for sums of {terms} products of {dtype}")
    _check_one("x", x, (rows, terms), dtype)
    _check_one("weight", weight, (columns, terms), dtype)
    if bias is not None:
        _check_one("bias", bias, (columns,), dtype)
    if residual is not None:
        _check_one("residual", residual, (rows, columns), dtype)
    _check_one("out", out, (rows, columns), dtype)
    if not out.is_contiguous():
        raise ArgumentError("out is not contiguous")


def _check_one(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or 0 in shape:
        raise ShapeError(f"{name} has shape {tuple(t.shape)}, expected {shape} without a zero")
    if t.dtype != dtype or not t.is_cpu:
        raise ArgumentError(
            f"{name} has dtype {t.dtype} on {t.device}, expected {dtype} on the CPU"
        )
