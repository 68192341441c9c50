"""A row of the report, and the check of rows: spills, memory, barriers, tensor cores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

from xlnet_fast.kernels.chips import KIB, SHARED_LIMITS
from xlnet_fast.kernels.cuda.room import Shape

PRODUCT = "HMMA"
COUNTED = (PRODUCT, "LDSM", "LDGSTS", "BAR", "MUFU")
"""Instructions shown: matrix product, load of its operands, asynchronous copy, barrier, exp2 and
the like."""
SPILL_LIMIT = 128
"""Bytes of registers that a thread of a Triton kernel may spill, none of them in an innermost loop:
ptxas parks a few scalars of the loops over tiles rather than narrow its schedule
(docs/measured.md)."""
PAIRED_SPILL_LIMIT = 256
PAIRED_LOOP_SPILLS = 16
"""The same of a tile of which two programs share a multiprocessor, and how often its innermost
loops may access such registers: a few beside hundreds of instructions a tile. It is taken where it
was measured to be the faster, never untimed."""
AMPLE = 163 * KIB
"""Chips whose blocks may have so many bytes of shared memory run every kernel. The others run those
that fit, which the dispatcher knows (`kernels.cuda.room`)."""
PRAISE = {
    "triton": "compilations: no spill in a loop but of tiles that are to be timed first, shared "
    "memory within each chip's limit, a barrier between every store to a strip and the loads that "
    "follow it",
    "cuda": "kernels: no spill in a loop, tensor cores where they belong, room as the last table "
    "says",
    "pallas": "kernels: all compile, no memory for scores, VMEM within each chip's and within the "
    "estimate that the tiles are chosen by (the compiler's figures; nothing ran on a TPU)",
}
"""What is said of a backend's rows where `check` finds nothing wrong, behind their number."""


class _OfBoth(TypedDict):
    backend: Literal["triton", "cuda"]
    kernel: str  # "rel_attention_forward"; of CUDA C++ with its template arguments
    arch: int  # the chip, 90 for sm_90
    registers: int  # of a thread
    spill_bytes: int  # of a thread: local memory with Triton, stored and loaded with CUDA C++
    loop_spills: int  # accesses to local memory in innermost loops
    shared_bytes: int  # of a block; static with CUDA C++


class Row(_OfBoth, total=False):
    """One kernel as it was compiled for one chip.

    A backend's rows have all of its fields but `block_m` and `block_n`, which are as many as the
    tile has dimensions; None is what there is not, or what is unknown.
    """

    # Triton's
    variant: str
    features: str
    dtype: str
    head_dim: int | None
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None  # the limit of registers
    gemm_units: float | None  # matrix products per score tile
    disorder: list[str]  # sentences on scratch memory read or overwritten without a barrier
    is_paired: bool  # whether the tile is to be timed before it is taken
    # CUDA C++'s
    source: str
    stack_bytes: int  # of a thread
    max_threads: int | None  # of a block, by the launch bounds, and so many are launched
    product_loop_spills: int  # as loop_spills, but of innermost loops with a product, all inside
    instructions: dict[str, int]  # of each of `COUNTED`, and "all"
    loop_instructions: dict[str, int]  # of loops with a product, else of innermost ones
    dynamic_bytes: int | None  # shared memory of a block
    blocks: int | None  # that fit on a multiprocessor; at most so many where dynamic_bytes is None


class TpuRow(TypedDict):
    """One Pallas kernel as it was compiled for one TPU, for a call with all that it can ask."""

    backend: Literal["pallas"]
    kernel: str  # "rel_attention_forward"
    arch: str  # the chip, "v5e"
    dtype: str
    head_dim: int
    tile: int  # rows and keys of it
    vmem_bytes: int  # that the compiler gave the kernel
    vmem_estimate_bytes: int  # ours, that the tile was chosen by: an upper one
    vmem_limit_bytes: int  # what a kernel may take of the chip's
    accessed_bytes: int  # of main memory, by the kernel's own estimate
    flops: int  # likewise
    program_temporary_bytes: int  # of the program, with the copies around its kernels
    program_accessed_bytes: int
    scores_bytes: int  # of all scores in dtype
    compile_seconds: float  # of the program


AnyRow = Row | TpuRow


def check(rows: Sequence[AnyRow]) -> list[str]:
    """What is wrong with a report, a sentence each."""
    return [_name(row) + problem for row in rows for problem in _problems(row)]


def _name(row: AnyRow) -> str:
    if row["backend"] == "pallas":
        return f"{row['kernel']} {row['dtype']} head_dim {row['head_dim']} on {row['arch']}"
    chip = f"on sm_{row['arch']}"
    if row["backend"] == "cuda":
        return f"{row['kernel']} {chip}"
    head_dim = "" if row["head_dim"] is None else f" head_dim {row['head_dim']}"
    of_tile = f" tile {tile(row)}" if "block_m" in row else ""
    what = f"{row['kernel']} ({row['variant']}, {row['features']})"
    return f"{what} {row['dtype']}{head_dim}{of_tile} {chip}"


def _problems(row: AnyRow) -> Iterator[str]:
    """What is wrong with a row, each to be read behind its name."""
    if row["backend"] == "pallas":
        yield from _problems_on_tpu(row)
        return
    is_paired = row.get("is_paired", False)
    if row["loop_spills"] > (PAIRED_LOOP_SPILLS if is_paired else 0):
        yield f" spills registers in {row['loop_spills']} places of a loop"
    most = PAIRED_SPILL_LIMIT if is_paired else SPILL_LIMIT
    if row["backend"] == "triton" and row["spill_bytes"] > most:
        yield f" spills {row['spill_bytes']} bytes of registers per thread, more than {most}"
    limit = SHARED_LIMITS[row["arch"]]
    if not fits(row) and (limit >= AMPLE or head_dim_of_shape(row) is None):
        yield f" needs {needed_bytes(row)} bytes of shared memory, the chip has {limit}"
    if "rel_attention" in row["kernel"] and row.get("instructions", {}).get(PRODUCT) == 0:
        yield f" does not use the tensor cores: it has no {PRODUCT}"
    yield from (f", PTX, {sentence}" for sentence in row.get("disorder", ()))


def _problems_on_tpu(row: TpuRow) -> Iterator[str]:
    needed = row["vmem_bytes"]
    for limit, whose in (
        (row["vmem_limit_bytes"], "a kernel may have of this chip's"),
        (row["vmem_estimate_bytes"], "its tile was chosen by"),
    ):
        if needed > limit:
            yield f" takes {needed} bytes of VMEM, more than the {limit} that {whose}"
    if (found := row["program_temporary_bytes"]) >= row["scores_bytes"]:
        yield f" has {found} bytes of temporary memory, as much as scores: {row['scores_bytes']}"


def tile(row: Row) -> str:
    """The tile of a Triton kernel, "64x32"; "-" where it has none."""
    return "x".join(str(row.get(name)) for name in ("block_m", "block_n") if name in row) or "-"


# --- shared memory -------------------------------------------------------------------------------


def needed_bytes(row: Row) -> int:
    """Shared memory of a block, static and dynamic, as far as it is known."""
    return row["shared_bytes"] + (row.get("dynamic_bytes") or 0)


def fits(row: Row) -> bool:
    """Whether a block of the row's chip may have what the kernel needs."""
    return needed_bytes(row) <= SHARED_LIMITS[row["arch"]]


def head_dim_of_shape(row: Row) -> int | None:
    """The largest head dim of a CUDA C++ attention kernel, if its name tells what it needs."""
    shape = re.search(r"^rel_attention_.*Shape<\w+, (\d+)", row["kernel"])
    return int(shape[1]) if shape and row.get("dynamic_bytes") is not None else None


def shapes_of(rows: Sequence[Row]) -> list[Shape]:
    """What CUDA C++ attention kernels need, by their names: see `csrc/cuda/launch.h`."""
    found: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        head_dim = head_dim_of_shape(row)
        if head_dim is not None:
            kernel = row["kernel"].partition("_kernel<")[0].removeprefix("rel_attention_")
            found.setdefault((kernel, head_dim), []).append(needed_bytes(row))
    return [
        Shape(kernel, kernel.startswith("backward"), head_dim, max(needed), min(needed))
        for (kernel, head_dim), needed in found.items()
    ]
