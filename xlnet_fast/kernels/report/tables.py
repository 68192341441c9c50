"""The rows of a report as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from xlnet_fast.kernels.chips import KIB, SHARED_LIMITS
from xlnet_fast.kernels.cuda.room import largest_head_dim
from xlnet_fast.kernels.report.rows import (
    COUNTED,
    AnyRow,
    Row,
    TpuRow,
    check,
    fits,
    needed_bytes,
    shapes_of,
    tile,
)

# Of CUDA C++: forward and backward of q, each in order and at positions; of k and v; of r.
_ATTENTION_KERNELS = 6


def render(rows: Sequence[AnyRow]) -> Group:
    """The report as one table per kernel, a line per row; problems in red.

    What does not fit on a chip that lacks room for every kernel of CUDA C++ is yellow. Of these the
    last table has what runs on every chip.
    """
    tables: dict[str, Table] = {}
    for row in rows:
        title, words, figures = _cells(row)
        if title not in tables:
            tables[title] = _table(title, words, figures)
        fitting = row["backend"] == "pallas" or fits(row)
        style = "bold red" if check([row]) else None if fitting else "yellow"
        tables[title].add_row(*words.values(), *figures.values(), style=style)
    return Group(*tables.values(), *_what_runs([r for r in rows if r["backend"] == "cuda"]))


def _table(title: str, words: Iterable[str], figures: Iterable[str]) -> Table:
    """An empty table with columns of words, and of figures behind them."""
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(row: AnyRow) -> tuple[str, dict[str, str], dict[str, str]]:
    """The title of a row's table; words and figures by the heading of their column."""
    if row["backend"] == "pallas":
        return _of_pallas(row)
    return _of_triton(row) if row["backend"] == "triton" else _of_cuda(row)


def _of_triton(row: Row) -> tuple[str, dict[str, str], dict[str, str]]:
    """As `_cells`.

    Chip, dtype, head dim D, features, tile with its warps and pipeline stages; registers
    and spilled bytes of a thread, spills in innermost loops, shared memory of a block.
    """
    title = row["kernel"] if row["variant"] == "-" else f"{row['kernel']}, variant {row['variant']}"
    if row["gemm_units"] is not None:
        title += f": {row['gemm_units']:g} matrix products per tile"
    words = {
        "chip": f"sm_{row['arch']}",
        "dtype": row["dtype"],
        "D": _or_dash(row["head_dim"]),
        "features": row["features"],
        "tile": f"{tile(row)}, {row['num_warps']}, {row['num_stages']}",
    }
    figures = {
        "regs": str(row["registers"]),
        "spill B": str(row["spill_bytes"]),
        "in loops": str(row["loop_spills"]),
        "KiB": f"{row['shared_bytes'] / KIB:.1f}",
    }
    return title, words, figures


def _of_cuda(row: Row) -> tuple[str, dict[str, str], dict[str, str]]:
    """As `_cells`.

    Template arguments, chip; threads of a block, registers and spilled bytes of a thread, spills in
    innermost loops / in loops with a product, KiB of shared memory, blocks that fit on a
    multiprocessor ("≥" and "≤" where the dynamic shared memory is unknown), instructions, each in
    the loops with a product (without one: in innermost loops) / in all.
    """
    title, _, arguments = row["kernel"].partition("<")
    unknown = row["dynamic_bytes"] is None
    blocks = ("≤" if unknown and row["blocks"] is not None else "") + _or_dash(row["blocks"])
    words = {"of": arguments.removesuffix(">") or "-", "chip": f"sm_{row['arch']}"}
    figures = {
        "threads": _or_dash(row["max_threads"]),
        "regs": str(row["registers"]),
        "spill B": str(row["spill_bytes"]),
        "in loops": f"{row['loop_spills']}/{row['product_loop_spills']}",
        "KiB": f"{'≥' if unknown else ''}{needed_bytes(row) / KIB:.1f}",
        "blocks": blocks if fits(row) else "does not fit",
    }
    inside, everywhere = row["loop_instructions"], row["instructions"]
    figures |= {name: f"{inside[name]}/{everywhere[name]}" for name in (*COUNTED, "all")}
    return title, words, figures


def _of_pallas(row: TpuRow) -> tuple[str, dict[str, str], dict[str, str]]:
    """As `_cells`.

    Chip, dtype, head dim D, tile; MiB of VMEM that the compiler gave the kernel / that the tile was
    chosen by / that a kernel may have; MB of main memory that the kernel accesses and its FLOPs, by
    its own estimate; of the program around it MiB of temporary memory, those of scores, and MB
    accessed; seconds to compile it.
    """
    words = {
        "chip": row["arch"],
        "dtype": row["dtype"],
        "D": str(row["head_dim"]),
        "tile": str(row["tile"]),
    }
    vmem = (row["vmem_bytes"], row["vmem_estimate_bytes"], row["vmem_limit_bytes"])
    figures = {
        "VMEM MiB": "/".join(f"{count / KIB**2:.1f}" for count in vmem),
        "MB": f"{row['accessed_bytes'] / 1e6:.0f}",
        "GFLOP": f"{row['flops'] / 1e9:.1f}",
        "temporary MiB": f"{row['program_temporary_bytes'] / KIB**2:.0f}",
        "scores MiB": f"{row['scores_bytes'] / KIB**2:.0f}",
        "program MB": f"{row['program_accessed_bytes'] / 1e6:.0f}",
        "compile s": f"{row['compile_seconds']:.0f}",
    }
    return row["kernel"] + ", TPU", words, figures


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _what_runs(rows: Sequence[Row]) -> list[Table]:
    """A table of chips and head dims, of the rows of all attention kernels; else no table."""
    kernels = shapes_of(rows)
    if len({shape.kernel for shape in kernels}) < _ATTENTION_KERNELS:
        return []
    head_dims = sorted({shape.head_dim for shape in kernels})
    table = _table("attention by chip and head dim", ["chip"], ["KiB a block"])
    for head_dim in head_dims:
        table.add_column(f"up to {head_dim}", no_wrap=True)
    for arch, limit in SHARED_LIMITS.items():
        forward, both = (largest_head_dim(kernels, limit, backward) for backward in (False, True))
        words = [_passes(head_dim, forward, both) for head_dim in head_dims]
        table.add_row(f"sm_{arch}", str(limit // KIB), *words)
    return [table]


def _passes(head_dim: int, forward: int, both: int) -> str:
    if head_dim <= both:
        return "forward, backward"
    return "does not fit: forward only" if head_dim <= forward else "does not fit"
