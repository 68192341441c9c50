"""Which operators an XLNet spends its time in, before and after `accelerate`.

    python -m benchmarks.micro.model_operators [--dtype fp32] [--shape 4x512] [--training]

The model is xlnet-base with random weights and as many layers as asked for, on real text with
padding and segments. A row is an operator, a column a provider of the model benchmark; a cell is
the operator's own time as a share of all operators' and in milliseconds a pass, from
`torch.profiler`. What takes less than one hundredth in both columns is "the rest". "no operator" is
the time that passed outside of all: Python, and on a CPU the linear layers of an accelerated model
in inference, which call their kernel directly.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ..cases.corpus import make_batch
from ..cases.model import ModelCase, in_dtype, load_source
from ..cases.rel_attention import DTYPES, FORWARD
from ..cases.shapes import BASE, TRAINING_STEP, Geometry
from ..providers.model import make_work
from ..providers.work import Work

PROVIDERS = ("hf_eager", "ours")
_REST, _OUTSIDE = "the rest", "no operator"
Times = dict[str, dict[str, float]]


def works(
    providers: tuple[str, ...], base: Geometry, case: ModelCase, layers: int, device: torch.device
) -> dict[str, Work]:
    """Return what each provider does on one model of so many layers, with AdamW in training."""
    geometry = replace(base, n_layer=layers)
    source = load_source(geometry)
    batch = make_batch(source.corpus, case.batch, case.length)
    batch = {name: x.to(device) for name, x in batch.items()}
    model = in_dtype(source.model, DTYPES[case.dtype], device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    return {name: make_work(name, geometry, case, model, batch, optimizer) for name in providers}


def milliseconds(providers: tuple[str, ...], case: ModelCase, layers: int, rounds: int) -> Times:
    """Return, for each provider, each operator's own milliseconds a pass."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    times: Times = {}
    for provider, work in works(providers, BASE, case, layers, device).items():
        work.run()
        work.run()
        with profile(activities=[activity]) as profiler:
            start = time.perf_counter()
            for _ in range(rounds):
                work.run()
            spent = (time.perf_counter() - start) * 1000.0 / rounds
        own = {
            event.key: getattr(event, f"self_{device.type}_time_total") / 1000.0 / rounds
            for event in profiler.key_averages()
        }
        # On a GPU the host runs ahead, and its clock says nothing of the device.
        outside = {_OUTSIDE: spent - sum(own.values())} if device.type == "cpu" else {}
        times[provider] = own | outside
    return times


def table_of(times: Times, least: float = 0.01) -> Table:
    """Return the table, longest first; `least` is the share below which a row is not shown."""
    totals = {provider: sum(own.values()) for provider, own in times.items()}
    names = {name for own in times.values() for name in own}

    def share(name: str, provider: str) -> float:
        return times[provider].get(name, 0.0) / totals[provider]

    shown = [name for name in names if any(share(name, p) >= least for p in times)]
    shown.sort(key=lambda name: -max(share(name, p) for p in times))
    table = Table("operator", *times)

    def row(title: str, spent: dict[str, float]) -> None:
        cells = (f"{spent[p] / totals[p]:.1%}  {spent[p]:.1f} ms" for p in times)
        table.add_row(title, *cells)

    for name in shown:
        row(name, {p: times[p].get(name, 0.0) for p in times})
    row(_REST, {p: totals[p] - sum(times[p].get(name, 0.0) for name in shown) for p in times})
    row("all", totals)
    return table


def main() -> None:
    """Print the table of one shape and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--shape", default="4x512", help="batch x length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--training", action="store_true", help="a training step, with dropout")
    options = parser.parse_args()
    try:
        batch, length = map(int, options.shape.split("x"))
        if min(batch, length, options.rounds, options.layers) < 1:
            raise ValueError
    except ValueError:
        parser.error("--shape is BATCHxLENGTH, as 4x512; all numbers are at least 1")
    case = ModelCase(batch, length, options.dtype, TRAINING_STEP if options.training else FORWARD)
    console = Console(width=110)
    console.print(f"{case.label}, {options.layers} layers, {torch.get_num_threads()} threads")
    console.print(table_of(milliseconds(PROVIDERS, case, options.layers, options.rounds)))


if __name__ == "__main__":
    main()
