"""What a backward pass that makes the scores once should cost: arithmetic, nothing is run.

    python3 -m benchmarks.micro.backward_plan [--batch 32] [--heads 16] [--length 512]

Counted for the CUDA C++ kernels, D = 64, rows in order, as clocks of one multiprocessor for a tile
of 64 x 64 scores of one head. Today three kernels make scores and dP again, each for itself
(docs/maths.md, the CUDA kernels). Two other ways make them once, in one kernel that writes them
in half precision for a bounded chunk of heads, and leave products with what was written to the
library:

    keys    the kernel owns keys: dk, dv as today; it writes dS and dS shifted to rows of r,
            for dS k, dS r and dS^T q
    rows    the kernel owns rows: dq as today; it writes P, dS and dS shifted to rows of r,
            for P^T dO, dS^T q and dr's dS^T q

A kernel takes as long as the most of its products, its accesses to shared memory and its traffic
with global memory; a product of the library as the larger of its multiplications and of one read
of what was written. Both are lower bounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

TILE, HEAD_DIM, HALF_BYTES = 64, 64, 2
SCORE_BYTES = HALF_BYTES * TILE * TILE
UNIT = TILE * TILE * HEAD_DIM  # multiply-adds of one product of a tile: a GEMM unit
MMA_SYNC = 1024  # multiply-adds a clock of a multiprocessor, by `mma.sync`
ROWS_OF_SHIFT = 128  # neighbouring rows that share a window of r in a product of the library
LIBRARY_SHARE = 0.5  # of the peak that a product with one side of 64 reaches: an assumption


class Kernel(NamedTuple):
    """One of today's kernels, by the table of docs/design.md, section 5."""

    units: float
    accesses: int  # of 128 bytes to shared memory
    tiles_beyond: int = 0  # of windows that stick out at the ends of the keys

    def share(self, keys: int) -> float:
        """What it does at so many keys, of what the table has for 512."""
        return (1 + self.tiles_beyond * TILE / keys) / (1 + self.tiles_beyond * TILE / 512)


class Chip(NamedTuple):
    """A GPU by its data sheet."""

    processors: int
    clock_ghz: float
    memory_tb_s: float
    library_peak: int  # multiply-adds a clock of a multiprocessor

    @property
    def bytes_per_clock(self) -> float:
        """Global memory, of one multiprocessor."""
        return self.memory_tb_s * 1e3 / (self.processors * self.clock_ghz)


class Way(NamedTuple):
    """A backward pass: the kernels, the tensors of scores one writes, the library's products."""

    kernels: Sequence[str]
    aligned: int  # written as they are, (rows, J)
    shifted: int  # written shifted to rows of r, (rows, J + ROWS_OF_SHIFT)
    products: int  # of aligned scores
    shifted_products: int


KERNELS = {
    "backward_q": Kernel(5.5, 1408 + 780 + 200),
    "backward_kv": Kernel(5.25, 1664 + 550 + 216),
    "backward_r": Kernel(5.55, 1738 + 850 + 430, 2),
}
WAYS = {
    "today": Way(("backward_q", "backward_kv", "backward_r"), 0, 0, 0, 0),
    "keys": Way(("backward_kv",), 1, 1, 1, 2),
    "rows": Way(("backward_q",), 2, 1, 2, 1),
}
CHIPS = {
    "A100": Chip(108, 1.41, 2.04, 1024),
    "H100": Chip(132, 1.7, 3.35, 2048),
    "H200": Chip(132, 1.7, 4.8, 2048),
}


def widening(keys: int) -> float:
    """How much wider a row of shifted scores is than one of keys."""
    return (keys + ROWS_OF_SHIFT) / keys


def units(way: Way, keys: int) -> float:
    """Products of one tile in GEMM units."""
    own = sum(KERNELS[name].units * KERNELS[name].share(keys) for name in way.kernels)
    return own + way.products + way.shifted_products * widening(keys)


def clocks(way: Way, chip: Chip, keys: int) -> float:
    """Clocks of one multiprocessor for one tile."""
    written = SCORE_BYTES * (way.aligned + way.shifted * widening(keys))
    own = 0.0
    for name in way.kernels:
        kernel = KERNELS[name]
        in_registers = max(kernel.units * UNIT / MMA_SYNC, kernel.accesses) * kernel.share(keys)
        own += max(in_registers, written / chip.bytes_per_clock)
    product = max(UNIT / (LIBRARY_SHARE * chip.library_peak), SCORE_BYTES / chip.bytes_per_clock)
    return own + product * (way.products + way.shifted_products * widening(keys))


def chunk_mib(way: Way, batch: int, length: int) -> float:
    """Memory of one head of the whole batch, the least that a chunk should hold."""
    tensors = way.aligned + way.shifted * widening(length)
    return tensors * HALF_BYTES * batch * length * length / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--length", type=int, default=512, help="rows and keys, a multiple of 64")
    given = parser.parse_args(arguments)
    if given.length < TILE or given.length % TILE or given.batch < 1 or given.heads < 1:
        parser.error(f"--length is a multiple of {TILE}, --batch and --heads are at least 1")
    table = Table("way", "GEMM units", "MiB a head", *(f"{name}: clocks, ms" for name in CHIPS))
    for name, way in WAYS.items():
        cells = []
        for chip in CHIPS.values():
            of_tile = clocks(way, chip, given.length)
            tiles = given.batch * given.heads * (given.length // TILE) ** 2
            time_ms = of_tile * tiles / chip.processors / (chip.clock_ghz * 1e6)
            cells.append(f"{of_tile:.0f}, {time_ms:.2f}")
        memory = chunk_mib(way, given.batch, given.length)
        table.add_row(name, f"{units(way, given.length):.2f}", f"{memory:.0f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
