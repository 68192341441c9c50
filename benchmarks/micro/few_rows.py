"""Linear layers of few rows, as generating text has: how fast the weight is read, in GB/s.

    python -m benchmarks micro.few_rows [--rows 1 2 8] [--dtype bf16] [--rounds 25] [--with-op]

A round times, one after another, a sum over part of a large tensor (what one core streams, with one
thread), our kernel and `F.linear`, each with the next of so many copies of the weight that none is
in a cache. `share` is ours over the stream of the same round; all figures are medians over the
rounds. A weight of order (out, in) is that of `nn.Linear`; one of (in, out) is q, k, v of XLNet.
With `--with-op` a column for `ops.linear` follows, which adds the host time of its checks and
takes whichever library its bounds say.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops.linear import linear as op

from ..cases.rel_attention import DTYPES

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 48)
WIDTHS = ((768, 768), (768, 3072), (3072, 768), (1024, 4096), (768, 32000))
ORDERS = ("out, in", "in, out")
CACHES = 128 << 20
"""Bytes of all copies of a weight at least: four times a last-level cache of 32 MiB."""
STREAMED = 16 << 20
"""Bytes of a sum that is the measure of a round."""
_ROW = "{:>5} {:>5}  {:8} {:5} {:>4}  {:>6} {:>6} {:>6} {:>9} {:>9}"


def weights(width_in: int, width_out: int, order: str, dtype: torch.dtype) -> list[Tensor]:
    """Return copies of a weight (out, in), in memory in either order, too many for a cache."""
    size = (width_out, width_in) if order == ORDERS[0] else (width_in, width_out)
    first = torch.randn(size).div_(width_in**0.5).to(dtype)
    copies = [first.clone() for _ in range(-(-CACHES // first.nbytes))]
    return copies if order == ORDERS[0] else [copy.t() for copy in copies]


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    x: Tensor, copies: list[Tensor], streamed: Tensor, rounds: int, with_op: bool
) -> list[list[float]]:
    """Return a list per round of GB/s: the stream, our kernel, F.linear, and perhaps the op."""
    out = x.new_empty(x.shape[0], copies[0].shape[0])
    at, parts = cycle(copies), cycle(streamed.split(STREAMED // streamed.element_size()))
    calls: list[Callable[[], Any]] = [
        lambda: cpu_linear.linear(x, next(at), None, None, False, out),
        lambda: F.linear(x, next(at)),
    ]
    if with_op:
        calls.append(lambda: op(x, next(at)))
    repeats = max(1, STREAMED // 4 // copies[0].nbytes)
    for call in calls:
        call()

    def one_round() -> list[float]:
        speeds = [STREAMED / seconds_of(next(parts).sum) / 1e9]
        for call in calls:
            taken = statistics.median(seconds_of(call) for _ in range(repeats))
            speeds.append(copies[0].nbytes / taken / 1e9)
        return speeds

    return [one_round() for _ in range(rounds)]


def compare(
    dtype: torch.dtype, rows: tuple[int, ...], rounds: int, with_op: bool, console: Console
) -> None:
    """Print a row for every weight, order and number of rows."""
    heads = ["in", "out", "order", "dtype", "rows", "stream", "ours", "share", "F.linear"]
    console.print(_ROW.format(*heads, "op" if with_op else "").rstrip())
    streamed = torch.ones(16 * STREAMED // 4)
    name = next(name for name, each in DTYPES.items() if each == dtype)
    for width_in, width_out in WIDTHS:
        for order in ORDERS:
            copies = weights(width_in, width_out, order, dtype)
            for count in rows:
                x = torch.randn(count, width_in).to(dtype)
                speeds = measure(x, copies, streamed, rounds, with_op)
                stream, ours, *others = map(statistics.median, zip(*speeds, strict=True))
                share = statistics.median(speed[1] / speed[0] for speed in speeds)
                figures = (f"{stream:.1f}", f"{ours:.1f}", f"{share:.0%}")
                other = [f"{speed:.1f}" for speed in others] + [""] * (not with_op)
                sizes = (width_in, width_out, order, name, count)
                console.print(_ROW.format(*sizes, *figures, *other).rstrip())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), action="append", help="default: both")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--with-op", action="store_true", help="time ops.linear as well")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.rows) < 1:
        parser.error("--rounds and --rows must be at least 1")
    if not cpu_linear.takes(torch.float32, terms=2):
        parser.error("our kernels have no fp32 on this CPU")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # what one core streams is the measure
    console = Console(width=110, highlight=False)
    console.print(f"1 thread, torch {torch.__version__}")
    with torch.no_grad():
        for name in options.dtype or ("fp32", "bf16"):
            if cpu_linear.takes(DTYPES[name], terms=2):
                compare(DTYPES[name], tuple(options.rows), options.rounds, options.with_op, console)
            else:
                console.print(f"{name}: no kernel of ours on this CPU")


if __name__ == "__main__":
    main()
