"""Rows of the kernels report as compilers give them, and the text of its tables."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from xlnet_fast.kernels.report.rows import COUNTED, Row, TpuRow

COUNTS = dict.fromkeys((*COUNTED, "all"), 0) | {"HMMA": 64, "all": 900}


def triton_row(**changes: Any) -> Row:
    row: Row = {
        "backend": "triton", "kernel": "rel_attention_forward", "variant": "precomputed",
        "features": "light", "arch": 80, "dtype": "bf16", "head_dim": 64, "block_m": 64,
        "block_n": 32, "num_warps": 4, "num_stages": 2, "maxnreg": None, "registers": 200,
        "spill_bytes": 0, "loop_spills": 0, "shared_bytes": 65536, "gemm_units": 2, "disorder": [],
        "is_paired": False,
    }  # fmt: skip
    return row | changes


def cuda_row(**changes: Any) -> Row:
    row: Row = {
        "backend": "cuda", "source": "csrc/cuda/a.cu",
        "kernel": "rel_attention_forward_kernel<Half, 64>", "arch": 80, "registers": 168,
        "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 1024, "max_threads": 128,
        "loop_spills": 0, "product_loop_spills": 0, "instructions": COUNTS,
        "loop_instructions": COUNTS | {"HMMA": 32}, "dynamic_bytes": 64 * 1024, "blocks": 2,
    }  # fmt: skip
    return row | changes


def tpu_row(**changes: Any) -> TpuRow:
    row: TpuRow = {
        "backend": "pallas", "kernel": "rel_attention_forward", "arch": "v5e", "dtype": "bf16",
        "head_dim": 64, "tile": 512, "vmem_bytes": 5 * 2**20, "vmem_estimate_bytes": 23 * 2**20,
        "vmem_limit_bytes": 112 * 2**20, "accessed_bytes": 239_000_000, "flops": 116_000_000_000,
        "program_temporary_bytes": 64 * 2**20, "program_accessed_bytes": 591_000_000,
        "scores_bytes": 432 * 2**20, "compile_seconds": 10.0,
    }  # fmt: skip
    return row | changes


def text_of(table: RenderableType) -> str:
    """A table as it is printed, 200 columns wide."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()
