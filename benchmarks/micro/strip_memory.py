"""Scratch memory of the Triton attention kernels on chips that are not here, by their launchers.

    python -m benchmarks.micro.strip_memory [--dtype bf16] [--batch 8] [--length 512]

The launchers run on the CPU up to the launch, for one stream and for both, forward and backward:
programs that they would start, programs that the chip runs at a time by registers and shared
memory, and the MiB of their strips. With --paired the tiles of which two programs share a
multiprocessor are taken, where there are any.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xlnet_fast.kernels.triton import (
    launch,
    rel_attention_backward,
    rel_attention_forward,
    tiles,
)
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Keys, Queries

HEADS, HEAD_DIM = 12, 64
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Gpu:
    """A chip by its compute capability, and how many multiprocessors it has."""

    name: str
    arch: int
    multiprocessors: int


GPUS = (Gpu("A100", 80, 108), Gpu("L4", 89, 58), Gpu("H100", 90, 132))


@dataclass(frozen=True)
class Scratch:
    """What one launch has for its strips; `resident`: programs that run at a time."""

    kernel: str
    tile: str
    programs: int
    resident: int
    nbytes: int


def measure(gpu: Gpu, dtype: torch.dtype, batch: int, length: int, streams: int) -> list[Scratch]:
    """The launches of a training step's attention: forward, backward_q, backward_kv."""
    found: list[Scratch] = []
    with _launchers(gpu, found):
        keys, queries = _call(dtype, batch, length, streams)
        outs = [torch.empty_like(each.q) for each in queries]
        stats = [each.q.new_empty(each.q.shape[:2] + each.q.shape[2:3]).float() for each in queries]
        stats = [x.transpose(1, 2).contiguous() for x in stats]
        rel_attention_forward.rel_attention_forward(keys, queries, outs, stats)
        wanted = [each.q for each in queries] + [keys.k, keys.v, None, None, keys.r]
        grads = [None if x is None else torch.empty_like(x) for x in wanted] + [None] * 4
        rel_attention_backward.rel_attention_backward(
            keys, queries, outs, stats, outs, grads, deterministic=False
        )
    return found


@contextlib.contextmanager
def _launchers(gpu: Gpu, found: list[Scratch]) -> Iterator[None]:
    """The launchers as on a GPU, their scratch memory counted and not made, no kernel started."""
    taken: list[tuple[str, tiles.Config]] = []
    counted: list[tuple[int, int]] = []
    genuine = launch.Call.config

    def config(call: launch.Call, kernel: str) -> tiles.Config:
        taken.append((kernel, genuine(call, kernel)))
        return taken[-1][1]

    def scratch(call: launch.Call, programs: int, elements: int) -> Tensor:
        counted.append((programs, programs * elements * call.keys.r.element_size()))
        return torch.empty(0, dtype=call.keys.r.dtype)

    def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        name, tile = taken[-1]
        assert all(programs == grid[0] for programs, _ in counted)
        resident = gpu.multiprocessors * launch.programs_per_processor(tile, gpu.arch)
        shape = f"{tile.block_m}x{tile.block_n}, {tile.num_warps} warps"
        found.append(Scratch(name, shape, grid[0], resident, sum(size for _, size in counted)))
        counted.clear()

    replaced = {
        "why_unavailable": lambda device: None, "arch": lambda device: gpu.arch,
        "processors": lambda device: gpu.multiprocessors,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(launch, name, function))
        stack.enter_context(mock.patch.object(launch.Call, "config", config))
        stack.enter_context(mock.patch.object(launch.Call, "scratch", scratch))
        for module in (rel_attention_forward, rel_attention_backward):
            stack.enter_context(mock.patch.object(module, "run_kernel", run_kernel))
        yield


def _call(dtype: torch.dtype, batch: int, length: int, streams: int) -> tuple[Keys, list[Queries]]:
    """Without segments; the query stream is a sixth of the positions, without dropout."""

    def operand(*shape: int) -> Tensor:
        return torch.empty(*shape, HEADS, HEAD_DIM, dtype=dtype)

    k, bias = operand(batch, length), operand()
    keys = Keys(
        k, k, None, None, operand(1, 2 * length), bias, bias, None, None, None, 0, HEAD_DIM**-0.5
    )
    mask = AttentionMask(see_self=True)
    targets = max(1, length // 6)
    positions = torch.arange(targets).expand(batch, targets)
    queries = [
        Queries(k, None, mask, None, None),
        Queries(operand(batch, targets), None, mask, positions, None, by_position=True),
    ]
    return keys, queries[:streams]


@contextlib.contextmanager
def paired_first() -> Iterator[None]:
    """Within the block the tiles of which two programs share a multiprocessor are taken."""
    safe = tiles.safe_tiles

    def first(*entry: Any) -> tuple[tiles.Config, ...]:
        return (*tiles.paired_tiles(*entry), *safe(*entry))

    with mock.patch.object(tiles, "safe_tiles", first):
        yield


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="strip_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--paired", action="store_true")
    options = parser.parse_args()
    if options.batch < 1 or options.length < 1:
        parser.error("--batch and --length are at least 1")
    table = Table(box=None, pad_edge=False)
    for heading in ("GPU", "streams", "kernel", "tile", "programs", "at a time", "strips MiB"):
        table.add_column(heading, justify="left" if heading in ("GPU", "kernel") else "right")
    for gpu in GPUS:
        for streams in (1, 2):
            with paired_first() if options.paired else contextlib.nullcontext():
                size = (DTYPES[options.dtype], options.batch, options.length)
                for made in measure(gpu, *size, streams):
                    table.add_row(
                        gpu.name, str(streams), made.kernel, made.tile, str(made.programs),
                        str(made.resident), f"{made.nbytes / 2**20:.1f}",
                    )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
