"""The linear layers of an XLNet on a CPU: our kernels, PyTorch's `F.linear` and its oneDNN.

    python -m benchmarks.micro.cpu_linear [--dtype fp32] [--rounds 15]

A row is one product, (tokens x in) by (in x out), alone or with the GELU or the residual that
follows it; "gradient" is that of the weight, a sum over the tokens. `ours` is in GFLOP/s; the
columns after it are the time of another over ours, the median of interleaved rounds (and the
middle 60% of them): above 1, ours is the faster. The last columns are the largest error against
float64 over what the tolerance rule allows with `F.linear` as eager: above 1 must not be used.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.tolerance import error_and_bound

from ..cases.rel_attention import DTYPES

TOKENS = (1, 16, 128, 1024, 2048)
WIDTHS = ((768, 768), (768, 3072), (3072, 768))
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_ROW = "{:>6} {:>5} {:>5}  {:9} {:>6}  {:>19}  {:>19}  {:>5} {:>7}"


def _ours(x: Tensor, weight: Tensor, bias: Any, residual: Any, gelu: bool = False) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[0])
    cpu_linear.linear(x, weight, bias, residual, gelu, out)
    return out


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, fused: str = "none") -> Tensor:
    """Call oneDNN with plain weights; `fused` is "none" or "gelu", the exact one."""
    algorithm = "none" if fused == "gelu" else ""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused, [], algorithm)
    return product


def _onednn_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return added


# Ours, F.linear, oneDNN; the weight of "transposed" and the operands of "gradient" lie as there.
FORMS: dict[str, tuple[Form, Form, Form]] = {
    "product": (
        lambda x, w, b, r: _ours(x, w, b, None),
        lambda x, w, b, r: F.linear(x, w, b),
        lambda x, w, b, r: _onednn(x, w, b),
    ),
    "gelu": (
        lambda x, w, b, r: _ours(x, w, b, None, gelu=True),
        lambda x, w, b, r: F.gelu(F.linear(x, w, b)),
        lambda x, w, b, r: _onednn(x, w, b, "gelu"),
    ),
    "residual": (
        lambda x, w, b, r: _ours(x, w, b, r),
        lambda x, w, b, r: F.linear(x, w, b) + r,
        _onednn_add,
    ),
    "other order": (
        lambda x, w, b, r: _ours(x, w.view(w.shape[::-1]).t(), None, None),
        lambda x, w, b, r: F.linear(x, w.view(w.shape[::-1]).t()),
        lambda x, w, b, r: _onednn(x, w.view(w.shape[::-1]).t(), None),
    ),
    "gradient": (
        lambda x, w, b, r: _ours(r.t(), x.t(), None, None),
        lambda x, w, b, r: r.t() @ x,
        lambda x, w, b, r: _onednn(r.t().contiguous(), x.t(), None),
    ),
}


def times(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call, one list per round, interleaved; short calls repeat."""

    def timed(call: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    for call in calls:
        call()
    repeats = max(1, int(2e-3 / max(timed(call, 1) for call in calls)))
    return [[timed(call, repeats) for call in calls] for _ in range(rounds)]


def compare(dtype: torch.dtype, rounds: int, forms: tuple[str, ...], console: Console) -> None:
    """Print a row for every product."""
    heads = ("tokens", "in", "out", "form", "ours", "F.linear / ours", "oneDNN / ours", "error")
    console.print(_ROW.format(*heads, "oneDNN's"))
    for tokens in TOKENS:
        for width_in, width_out in WIDTHS:
            x, weight = torch.randn(tokens, width_in), torch.randn(width_out, width_in)
            bias, residual = torch.randn(width_out), torch.randn(tokens, width_out)
            given = [t.to(dtype) for t in (x, weight, bias, residual)]
            exact = [t.double() for t in given]
            for name in forms:
                calls: list[Callable[[], Any]] = [
                    lambda form=form: form(*given)  # type: ignore[misc]  # noqa: B023
                    for form in FORMS[name]
                ]
                seconds = times(calls, rounds)
                ours, eager, other = (call() for call in calls)
                oracle = FORMS[name][1](*exact)
                errors = [error_and_bound(t, eager, oracle) for t in (ours, other)]
                work = 2e-9 * tokens * width_in * width_out
                speed = work / statistics.median(row[0] for row in seconds)
                ratios = (_ratio([row[i] / row[0] for row in seconds]) for i in (1, 2))
                shares = (f"{error / bound:.2f}" for error, bound in errors)
                sizes = (tokens, width_in, width_out, name)
                console.print(_ROW.format(*sizes, f"{speed:.0f}", *ratios, *shares))


def _ratio(pairs: list[float]) -> str:
    pairs, cut = sorted(pairs), len(pairs) // 5
    return f"{statistics.median(pairs):.2f} ({pairs[cut]:.2f}, {pairs[-1 - cut]:.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--form", choices=tuple(FORMS), action="append", help="default: all")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    dtype = DTYPES[options.dtype]
    if not torch.backends.mkldnn.is_available():
        parser.error("this PyTorch was built without oneDNN")
    if not cpu_linear.takes(dtype, terms=2):
        parser.error(f"our kernels have no {options.dtype} on this CPU")
    torch.manual_seed(0)
    forms = tuple(options.form or FORMS)
    if dtype == torch.bfloat16:
        forms = tuple(form for form in forms if form != "gradient")  # its sums are no pairs
    console = Console(width=110, highlight=False)
    console.print(f"{options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        compare(dtype, options.rounds, forms, console)


if __name__ == "__main__":
    main()
