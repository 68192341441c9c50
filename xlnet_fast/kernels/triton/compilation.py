"""One compilation of a kernel for a chip: what the report needs to make it without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = ("fp16", "bf16", "fp32")
"""Triton's names of the dtypes that every kernel takes."""


@dataclass(frozen=True)
class Compilation:
    """A kernel with the types of its arguments, as its launcher passes them.

    Attributes:
        kernel: "rel_attention_forward".
        variant: of the kernel, "-" where there is only one.
        features: short label of the optional arguments it has.
        dtype: of the main operands, one of `DTYPES`.
        head_dim: D, or None where the kernel knows no head dim.
        function: the jit function.
        types: argument name -> "*bf16", "i32", "fp32", None for an absent argument, or a tuple of
            these, named like the one that the launcher passes.
        constants: constexpr argument name -> value.
        options: for the compiler: num_warps, num_stages, maxnreg, enable_fp_fusion.
        tile: rows and keys of a tile, or elements of a block.
        gemm_units: matrix products per score tile, None for a kernel without any.
        scratch: names of pointer arguments to memory through which threads of a block hand values
            on: the report checks the barriers (`kernels/report/ptx.py`).
        is_paired: whether it is to be timed before it is taken, as it may spill in a loop
            (`tiles.paired_tiles`).
        aligned: whether integers that Triton specialises on are multiples of 16, as pointers are.
    """

    kernel: str
    variant: str
    features: str
    dtype: str
    head_dim: int | None
    function: Any
    types: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    tile: tuple[int, ...]
    gemm_units: float | None = None
    scratch: tuple[str, ...] = ()
    is_paired: bool = False
    aligned: bool = True
