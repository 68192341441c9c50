"""Which kernels of a report fit on which chips, by shared memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from xlnet_fast.kernels.chips import KIB, SHARED_LIMITS
from xlnet_fast.kernels.cuda.room import Shape, largest_head_dim

AMPLE = 163 * KIB
"""Chips whose blocks may have so many bytes of shared memory run every kernel. The others run those
that fit, which the dispatcher knows (`kernels.cuda.room`)."""
_ATTENTION_KERNELS = 5  # forward (2: rows in order, at positions), backward of q, of k, v, of r


def what_runs(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """A table of chips and head dims, of the rows of all attention kernels; else no table."""
    kernels = shapes_of(rows)
    if len({shape.kernel for shape in kernels}) < _ATTENTION_KERNELS:
        return []
    head_dims = sorted({shape.head_dim for shape in kernels})
    table = Table(title="attention by chip and head dim", box=SIMPLE, pad_edge=False)
    table.add_column("chip", no_wrap=True)
    table.add_column("KiB a block", justify="right", no_wrap=True)
    for head_dim in head_dims:
        table.add_column(f"up to {head_dim}", no_wrap=True)
    for arch, limit in SHARED_LIMITS.items():
        forward, both = (largest_head_dim(kernels, limit, backward) for backward in (False, True))
        words = [_words(head_dim, forward, both) for head_dim in head_dims]
        table.add_row(f"sm_{arch}", str(limit // KIB), *words)
    return [table]


def _words(head_dim: int, forward: int, both: int) -> str:
    if head_dim <= both:
        return "forward, backward"
    return "does not fit: forward only" if head_dim <= forward else "does not fit"


def shapes_of(rows: Sequence[dict[str, Any]]) -> list[Shape]:
    """What the attention kernels of a report need, by their names: see `csrc/cuda/launch.h`."""
    found: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        head_dim = tile_of(row)
        if head_dim is not None:
            kernel = row["kernel"].partition("_kernel<")[0].removeprefix("rel_attention_")
            found.setdefault((kernel, head_dim), []).append(needed_bytes(row))
    return [
        Shape(kernel, kernel.startswith("backward"), head_dim, max(needed), min(needed))
        for (kernel, head_dim), needed in found.items()
    ]


def tile_of(row: Mapping[str, Any]) -> int | None:
    """The head dim of an attention kernel's tile, if its name tells what it needs; else None."""
    shape = re.search(r"^rel_attention_.*Shape<\w+, (\d+)", row["kernel"])
    return int(shape[1]) if shape and row["dynamic_bytes"] is not None else None


def needed_bytes(row: Mapping[str, Any]) -> int:
    """Shared memory of a block, static and dynamic, as far as it is known."""
    return int(row["shared_bytes"]) + int(row["dynamic_bytes"] or 0)


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a block of the row's chip may have what the kernel needs."""
    return needed_bytes(row) <= SHARED_LIMITS[row["arch"]]
