"""Attention over cached keys on a CPU: our kernel, the same in plain PyTorch, and memory itself.

    python -m benchmarks micro.cached_attention [--dtype fp32] [--rounds 15]

A row is one layer of one step of generation: R query rows over J keys of a batch, 12 heads of 64.
As in a model, no call finds its keys in the caches: calls go over many layers in turn. `ours` is in
microseconds; `PyTorch / ours` is the time of plain PyTorch over it, the median of interleaved
rounds (and the middle 60% of them). `of memory` is the time that keys, values and table, (2 B + 1)
J N D elements, would take at the rate of a sum over a large tensor, over ours: 1 is the limit.
`error` is the largest error against float64 over what the tolerance rule allows with plain PyTorch
as eager: what is above 1 is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from xlnet_fast.kernels import cpu
from xlnet_fast.ops import cached_attention as op
from xlnet_fast.tolerance import error_and_bound

from ..cases.rel_attention import DTYPES

HEADS, DIM = 12, 64
SHAPES = (
    (1, 20, 3), (1, 100, 3), (1, 300, 3), (1, 1000, 3), (1, 2000, 3), (1, 1000, 1), (1, 1000, 24),
    (8, 20, 3), (8, 100, 3), (8, 300, 3), (8, 1000, 3),
)  # fmt: skip
"""Batch size, keys, rows: two tokens and the query row, or the query row alone, or eight drafts."""
BEYOND_CACHES = 128 << 20
"""Bytes of all layers together."""
_ROW = "{:>5} {:>5} {:>4}  {:>9}  {:>20}  {:>20}  {:>6}"
Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def layers(batch: int, keys: int, rows: int, dtype: torch.dtype) -> list[Call]:
    """Arguments of calls that no cache holds all at once."""
    elements = (2 * batch + 1) * keys * HEADS * DIM
    count = min(256, BEYOND_CACHES // (elements * dtype.itemsize) + 2)
    length = keys + rows + 1
    options = {"far": keys + rows, "rows_at": keys, "scale": DIM**-0.5}
    slots = (batch, HEADS, keys + 8, DIM)
    calls = []
    for _ in range(count):
        q = torch.randn(rows, batch, HEADS, DIM).to(dtype)
        cached = [torch.randn(slots).to(dtype)[:, :, 4 : 4 + keys] for _ in range(2)]
        table = torch.randn(HEADS, length, DIM).to(dtype)
        biases = [torch.randn(HEADS, DIM).to(dtype) for _ in range(2)]
        calls.append(((q, *cached, table, *biases), options))
    return calls


def ours(operands: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    """The public function, which takes the kernel here."""
    return op.cached_attention(*operands, **options)


def in_pytorch(operands: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    """What it does where it has no kernel."""
    q, keys, values, table, w, r = operands
    far, rows_at, scale = (options[name] for name in ("far", "rows_at", "scale"))
    return op._in_pytorch(q, keys, values, table, w, r, far, rows_at, None, None, scale)


def error(call: Call) -> float:
    """Of ours, over the bound."""
    operands, options = call
    exact = in_pytorch(tuple(x.double() for x in operands), options)
    found, bound = error_and_bound(ours(*call), in_pytorch(*call), exact)
    return found / bound


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    dtype: torch.dtype, rounds: int, shapes: Sequence[tuple[int, int, int]], console: Console
) -> None:
    """Print a row for every shape.

    Raises:
        RuntimeError: the kernel is wrong.
    """
    heads = ("batch", "keys", "rows", "ours", "PyTorch / ours", "of memory", "error")
    console.print(_ROW.format(*heads))
    large = torch.randn(BEYOND_CACHES // 4)
    for batch, keys, rows in shapes:
        calls = layers(batch, keys, rows, dtype)
        share = error(calls[0])
        if share > 1.0:
            raise RuntimeError(f"{batch}x{keys}: error {share:.2f} of what the rule allows")
        size = (2 * batch + 1) * keys * HEADS * DIM * dtype.itemsize
        times = []
        for _ in range(rounds + 1):  # the first one warms up
            mine = seconds(lambda: [ours(*call) for call in calls]) / len(calls)  # noqa: B023
            plain = seconds(lambda: [in_pytorch(*call) for call in calls]) / len(calls)  # noqa: B023
            memory = seconds(large.sum) * size / BEYOND_CACHES
            times.append((mine, plain, memory))
        del times[0]
        console.print(
            _ROW.format(
                batch, keys, rows,
                f"{1e6 * statistics.median(mine for mine, _, _ in times):.0f}",
                ratio([plain / mine for mine, plain, _ in times]),
                ratio([memory / mine for mine, _, memory in times]),
                f"{share:.2f}",
            )
        )  # fmt: skip


def ratio(pairs: list[float]) -> str:
    """The median, and the middle 60%."""
    pairs, cut = sorted(pairs), len(pairs) // 5
    return f"{statistics.median(pairs):.2f} ({pairs[cut]:.2f}, {pairs[-1 - cut]:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if (reason := cpu.why_unavailable()) is not None:
        parser.error(reason)
    torch.manual_seed(0)
    console = Console(width=110, highlight=False)
    console.print(f"{options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        compare(DTYPES[options.dtype], options.rounds, SHAPES, console)


if __name__ == "__main__":
    main()
