"""Launches for the next segment's memory of all layers, counted without a GPU, and what they move.

    python -m benchmarks.micro.memory_launches

Backend sdpa hands all layers to PyTorch at once, which launches as often as the size of all copies
takes it, more often where it was built with CUDA 12; the kernels of Triton and CUDA C++ take 32
layers a launch. Every way reads and writes each byte of the new memory once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from xlnet_fast import ops
from xlnet_fast.kernels.triton.concat_memory import MAX_LAYERS

from ..harness.launches import Ledger, fake_gpu

_LENGTHS = (512, 1024)


@dataclass(frozen=True)
class Case:
    """A model and how much of it is remembered: ``mem_len`` rows of a memory and a segment."""

    name: str
    layers: int
    width: int
    batch: int
    length: int
    mem_len: int


CASES = tuple(
    Case(name, layers, width, 8, 512, mem_len)
    for name, layers, width in (("base", 12, 768), ("large", 24, 1024))
    for mem_len in _LENGTHS
)


def count(case: Case, cuda: int, memory_dtype: torch.dtype = torch.bfloat16) -> int:
    """Launches of backend sdpa with bf16 hidden states; ``cuda`` as :class:`Ledger` has it."""
    device = torch.device("cuda", 0)
    shape = (case.length, case.batch, case.width)
    with fake_gpu(), Ledger(cuda) as ledger:
        hidden, memory = (
            [torch.empty(shape, dtype=dtype, device=device) for _ in range(case.layers)]
            for dtype in (torch.bfloat16, memory_dtype)
        )
        ledger.forget()
        ops.concat_memories(hidden, memory, case.mem_len, backend="sdpa")
    return ledger.total


def moved_mib(case: Case) -> float:
    """MiB that are read and written, in bf16."""
    rows = min(case.mem_len, 2 * case.length)
    return 2 * 2 * case.layers * rows * case.batch * case.width / 2**20


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog="memory_launches", description=(__doc__ or "").partition("\n")[0]
    ).parse_args()
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "mem_len", "moved MiB", "sdpa, CUDA 12", "CUDA 13", "own kernels"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in CASES:
        table.add_row(
            f"{case.name} {case.batch}x{case.length}, {case.layers} layers", str(case.mem_len),
            f"{moved_mib(case):,.0f}", *(str(count(case, cuda)) for cuda in (12, 13)),
            str(-(-case.layers // MAX_LAYERS)),
        )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
