"""Attention of frames within a window on a CPU: what is left out costs nothing.

    python -m benchmarks micro.window [--dtype fp32] [--rounds 7] [--backward]

A row is a batch of recordings, so many frames each, 8 heads of 64, a table of 2 T - 1 rows. The
first column has the time of attention over all frames, in milliseconds; the others its time over
that of attention with

    window   70 frames to the left and 13 to the right
    chunks   of 14 frames, each of which sees 70 to the left of its chunk and the chunk
    bits     the same window as a dense mask, which has to be read and leaves nothing out

the median of interleaved rounds (and the middle 60% of them). A mask is not timed before its
results are those of the reference, as exactly as the tolerance rule asks for.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from rich.console import Console
from torch import Tensor

from xlnet_fast import ops
from xlnet_fast.kernels import cpu
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.tolerance import error_and_bound

from ..cases.rel_attention import DTYPES
from .cached_attention import ratio, seconds

HEADS, DIM = 8, 64
SHAPES = ((4, 750), (1, 3000))
"""Recordings and frames: four of a minute, and one of four, at 80 ms a frame."""
LEFT, RIGHT = 70, 13
CHECKED = 150
"""Frames of the call that is checked: many windows."""
_ROW = "{:>5} {:>6}  {:>9}  {:>20}  {:>20}  {:>20}"


def masks_of(frames: int) -> dict[str, AttentionMask]:
    """By name, what is compared."""
    window = AttentionMask(window=(LEFT, RIGHT))
    hidden = window.hidden(torch.arange(frames)[None], frames, 0)
    assert hidden is not None
    return {
        "all": AttentionMask(),
        "window": window,
        "chunks": AttentionMask(window=(LEFT, 0), chunk=RIGHT + 1),
        "bits": AttentionMask(bits=pack_bits(hidden)),
    }


def operands_of(batch: int, frames: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v, r and its two biases."""
    shape = (batch, frames, HEADS, DIM)
    tensors = [torch.randn(shape) for _ in range(3)]
    tensors += [torch.randn(1, 2 * frames - 1, HEADS, DIM), *torch.randn(2, HEADS, DIM)]
    return tuple(x.to(dtype) for x in tensors)


def attend(
    operands: tuple[Tensor, ...], mask: AttentionMask, backward: bool, backend: str = "cpu"
) -> tuple[Tensor, ...]:
    """The output, and with ``backward`` the operands' gradients of its sum."""
    leaves = tuple(x.detach().requires_grad_(backward) for x in operands)
    out = ops.rel_attention(*leaves, mask=mask, r_start=1, backend=backend)
    return (out, *torch.autograd.grad(out.sum(), leaves)) if backward else (out,)


def check(dtype: torch.dtype, backward: bool) -> None:
    """Raise where a mask's results are not within the tolerance rule.

    Raises:
        RuntimeError: names the mask.
    """
    operands = operands_of(1, CHECKED, dtype)
    wide = tuple(x.double() for x in operands)
    for name, mask in masks_of(CHECKED).items():
        results = (
            attend(operands, mask, backward),
            attend(operands, mask, backward, "reference"),
            attend(wide, mask, backward, "reference"),
        )
        for ours, eager, exact in zip(*results, strict=True):
            found, bound = error_and_bound(ours, eager, exact)
            if found > bound:
                raise RuntimeError(f"{name}: error {found:.2e}, and the rule allows {bound:.2e}")


def compare(
    dtype: torch.dtype,
    rounds: int,
    backward: bool,
    shapes: Sequence[tuple[int, int]],
    console: Console,
) -> None:
    """Print a row for every shape.

    Raises:
        RuntimeError: the kernel is wrong.
    """
    check(dtype, backward)
    console.print(_ROW.format("batch", "frames", "all, ms", *list(masks_of(1))[1:]))
    for batch, frames in shapes:
        operands, masks = operands_of(batch, frames, dtype), masks_of(frames)
        times: dict[str, list[float]] = {name: [] for name in masks}
        for _ in range(rounds + 1):  # the first one warms up
            for name, mask in masks.items():
                times[name].append(seconds(lambda: attend(operands, mask, backward)))  # noqa: B023
        whole = times.pop("all")[1:]
        ratios = [
            ratio([all_ / own for all_, own in zip(whole, of_mask[1:], strict=True)])
            for of_mask in times.values()
        ]
        console.print(_ROW.format(batch, frames, f"{1e3 * statistics.median(whole):.0f}", *ratios))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backward", action="store_true", help="time the backward pass too")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if (reason := cpu.why_unavailable()) is not None:
        parser.error(reason)
    torch.manual_seed(0)
    console = Console(width=110, highlight=False)
    console.print(f"{options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    compare(DTYPES[options.dtype], options.rounds, options.backward, SHAPES, console)


if __name__ == "__main__":
    main()
