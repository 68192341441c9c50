"""The linear layers of an XLNet on a CPU: PyTorch's `F.linear` against oneDNN, time and error.

    python -m benchmarks.micro.cpu_linear [--dtype fp32] [--rounds 15]

A row is one product, (tokens x in) by (in x out), alone or with the GELU or the residual that
follows it. `time` is that of `F.linear` over oneDNN's, the median of interleaved pairs: above 1,
oneDNN is the faster. `error` is oneDNN's largest error against float64 over what the tolerance rule
allows with `F.linear` as eager: above 1 it must not be used. The last table has the three products
q, k, v against one with a concatenated weight.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.tolerance import error_and_bound

from ..rel_attention_case import DTYPES

TOKENS = (128, 1024, 2048)
WIDTHS = ((768, 768), (768, 3072), (3072, 768), (1024, 4096), (4096, 1024))
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None, fused: str = "none") -> Tensor:
    """Call oneDNN with plain weights; `fused` is "none" or "gelu", the exact one."""
    algorithm = "none" if fused == "gelu" else ""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused, [], algorithm)
    return product


def _onednn_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return added


FORMS: dict[str, tuple[Form, Form]] = {
    "product": (lambda x, w, b, r: F.linear(x, w, b), lambda x, w, b, r: onednn(x, w, b)),
    "gelu": (
        lambda x, w, b, r: F.gelu(F.linear(x, w, b)),
        lambda x, w, b, r: onednn(x, w, b, "gelu"),
    ),
    "residual": (lambda x, w, b, r: F.linear(x, w, b) + r, _onednn_add),
}


def ratios(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> list[float]:
    """Return the times of the first over those of the second, sorted, one per interleaved pair."""

    def timed(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    for call in (first, second):
        call()
        call()
    return sorted(timed(first) / timed(second) for _ in range(rounds))


def compare_products(dtype: torch.dtype, rounds: int) -> Table:
    """Return the table of single products."""
    table = Table("tokens", "in", "out", "form", "time", "middle 60%", "error / allowed")
    for tokens in TOKENS:
        for width_in, width_out in WIDTHS:
            x, weight = torch.randn(tokens, width_in), torch.randn(width_out, width_in)
            bias, residual = torch.randn(width_out), torch.randn(tokens, width_out)
            given = [t.to(dtype) for t in (x, weight, bias, residual)]
            exact = [t.double() for t in given]
            for name, (aten, other) in FORMS.items():
                pairs = ratios(lambda: aten(*given), lambda: other(*given), rounds)  # noqa: B023
                error, bound = error_and_bound(other(*given), aten(*given), aten(*exact))
                middle = f"{pairs[rounds // 5]:.2f} to {pairs[-1 - rounds // 5]:.2f}"
                sizes = (str(tokens), str(width_in), str(width_out))
                table.add_row(
                    *sizes, name, f"{statistics.median(pairs):.2f}", middle, f"{error / bound:.2f}"
                )
    return table


def compare_fused_projections(dtype: torch.dtype, rounds: int) -> Table:
    """Return three products q, k, v over one, the weight concatenated in every call or before."""
    table = Table("tokens", "concatenated before", "in every call")
    for tokens in TOKENS:
        x = torch.randn(tokens, 768, dtype=dtype)
        weights = [torch.randn(768, 768, dtype=dtype) for _ in range(3)]
        together = torch.cat(weights, dim=1)

        def apart() -> list[Tensor]:
            return [onednn(x, w.t(), None) for w in weights]  # noqa: B023

        before = ratios(apart, lambda: onednn(x, together.t(), None), rounds)  # noqa: B023
        each = ratios(
            apart,
            lambda: onednn(x, torch.cat(weights, dim=1).t(), None),  # noqa: B023
            rounds,
        )
        row = (f"{statistics.median(pairs):.2f}" for pairs in (before, each))
        table.add_row(str(tokens), *row)
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not torch.backends.mkldnn.is_available():
        parser.error("this PyTorch was built without oneDNN")
    torch.manual_seed(0)
    console, dtype = Console(width=100), DTYPES[options.dtype]
    console.print(f"{options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        console.print(compare_products(dtype, options.rounds))
        console.print(compare_fused_projections(dtype, options.rounds))


if __name__ == "__main__":
    main()
