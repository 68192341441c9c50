"""Dropout on a CPU by one kernel and with its mask made first: the op alone, and a training step.

    python -m benchmarks micro.cpu_dropout [--rounds 15] [--threads 1 2] [--part op]

Both give the same bits, which is checked before a time is taken. `kernel` reads x and writes the
result once; `mask` is Philox's mask, `torch.where`, and a multiplication. The step is forward and
backward of an accelerated XLNet. Times are medians of interleaved rounds in milliseconds;
"mask / kernel" is the median of the ratios within a round, its middle 60% behind it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import XLNetConfig, XLNetModel

import xlnet_fast
from xlnet_fast.ops import dropout as op

from ..cases.rel_attention import DTYPES
from ..harness.quiet import Quiet
from ..harness.timing import CpuTimer, Measurement, Plan, measure, paired_ratio, percentile

RATE = 0.1
SHAPES = ((4, 512, 768), (4, 512, 3072))
TOKENS = (4, 512)
CONFIG = {"d_model": 768, "n_head": 12, "d_inner": 3072, "n_layer": 4, "vocab_size": 1000}
NAMES = ("fp32", "bf16")
PARTS = ("op", "step")
Call = Callable[[], Sequence[Tensor]]


def masked(call: Call) -> Call:
    """Return the same call without the kernel."""

    def run() -> Sequence[Tensor]:
        with mock.patch.object(op, "has_kernel", return_value=False):
            return call()

    return run


def op_alone(shape: Sequence[int], dtype: torch.dtype) -> Call:
    """Return a call of the op."""
    x, seed = torch.randn(shape).to(dtype), torch.tensor([5])
    return lambda: [op.dropout(x, RATE, seed)]


def step(dtype: torch.dtype) -> Call:
    """Return a training step that gives its output and the gradients, without an optimizer."""
    model: Any = xlnet_fast.accelerate(XLNetModel(XLNetConfig(**CONFIG, dropout=RATE)))
    model = model.to(dtype).train()
    ids = torch.randint(10, CONFIG["vocab_size"], TOKENS)

    def run() -> Sequence[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        out = model(ids).last_hidden_state
        out.float().square().mean().backward()
        return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return run


def measured(call: Call, rounds: int) -> dict[str, Measurement]:
    """Return the samples of a call with the kernel and without.

    Raises:
        RuntimeError: the kernel is missing, or the two differ in a bit.
    """
    ran = []
    with mock.patch.object(op.cpu_dropout, "dropout", side_effect=op.cpu_dropout.dropout) as kernel:
        for each in (masked(call), call):
            ran.append([t.clone() for t in each()])
            if bool(kernel.call_count) != (len(ran) == 2):
                raise RuntimeError("the kernel did not run, or ran where it should not")
    if not all(torch.equal(a, b) for a, b in zip(*ran, strict=True)):
        raise RuntimeError("the kernel's results are not those of the mask made first")
    plan = Plan(rounds, rounds, min_sample_us=3_000.0, max_repeats=30)
    return measure({"mask": masked(call), "kernel": call}, CpuTimer(), plan)


def calls_of(part: str, dtype: torch.dtype) -> dict[str, Call]:
    """Return the calls of "op" or "step" by their names."""
    if part == "step":
        return {f"step of {'x'.join(map(str, TOKENS))}": step(dtype)}
    return {"x".join(map(str, shape)): op_alone(shape, dtype) for shape in SHAPES}


def compare(threads: Sequence[int], rounds: int, parts: Sequence[str], console: Console) -> None:
    """Print the table."""
    quiet = Quiet()
    table = Table("call", "dtype", "threads", "mask, ms", "kernel, ms", "mask / kernel")
    for count in threads:
        torch.set_num_threads(count)
        for part, name in itertools.product(parts, NAMES):
            for label, call in calls_of(part, DTYPES[name]).items():
                table.add_row(label, name, str(count), *cells(measured(call, rounds)))
                quiet.look()
    console.print(table)
    if warning := quiet.warning():
        console.print(warning)


def cells(found: dict[str, Measurement]) -> list[str]:
    """Return both times and their ratio."""
    base, other = found["mask"], found["kernel"]
    ratios = [a / b for a, b in zip(base.samples_us, other.samples_us, strict=True)]
    spread = f"({percentile(ratios, 20):.2f} to {percentile(ratios, 80):.2f})"
    times = [f"{each.percentile_us(50) / 1e3:.2f}" for each in (base, other)]
    return [*times, f"{paired_ratio(base, other):.2f} {spread}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: both")
    options = parser.parse_args(arguments)
    for value in (options.rounds, *options.threads):
        if value < 1:
            parser.error(f"rounds and threads are expected to be at least 1, got {value}")
    torch.manual_seed(0)
    compare(options.threads, options.rounds, options.part or PARTS, Console(width=110))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
