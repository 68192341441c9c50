"""A training step with dropout: an accelerated model, and the same under `torch.compile`.

    python -m benchmarks micro.compiled_step [--shape 4x512] [--layers 4] [--rounds 9]

The model is xlnet-base with random weights and as many layers as asked for, on real text with
padding and segments; forward, backward and AdamW. Rounds are interleaved; times are medians in
milliseconds, ratios the medians of those within a round. Nothing is checked here: the tests hold
compiled models against the tolerance rule, and dropout draws other masks in either form.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from ..cases.model import ModelCase
from ..cases.shapes import BASE, TRAINING_STEP
from ..harness.quiet import Quiet
from ..harness.timing import Measurement, Plan, make_timer, measure, paired_ratio
from .model_operators import works

PROVIDERS = ("hf_eager", "ours", "ours_compile")
TITLES = ("Hugging Face", "ours", "ours, compiled")


def measured(case: ModelCase, layers: int, rounds: int) -> dict[str, Measurement]:
    """Return the samples of each provider."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    functions = {
        name: work.run for name, work in works(PROVIDERS, BASE, case, layers, device).items()
    }
    return measure(functions, make_timer(device), Plan(rounds, rounds, min_sample_us=0.0))


def row(found: dict[str, Measurement]) -> list[str]:
    """Return the times, and the two ratios; the reason where a provider failed."""
    failures = [f"{name}: {x.failure}" for name, x in found.items() if not x.ok]
    if failures:
        return ["; ".join(failures)]
    eager, compiled = found["ours"], found["ours_compile"]
    times = [f"{found[name].percentile_us(50) / 1e3:,.0f}" for name in PROVIDERS]
    over_hf = paired_ratio(found["hf_eager"], compiled)
    return [*times, f"{paired_ratio(eager, compiled):.2f}", f"{over_hf:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", default="4x512", help="BATCHxLENGTH")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    try:
        batch, length = map(int, options.shape.split("x"))
        if min(batch, length, options.layers, options.rounds) < 1:
            raise ValueError
    except ValueError:
        parser.error("--shape is BATCHxLENGTH, as 4x512; all numbers are at least 1")
    table = Table("dtype", *TITLES, "ours / compiled", "Hugging Face / compiled")
    quiet = Quiet()
    for dtype in ("fp32", "bf16"):
        case = ModelCase(batch, length, dtype, TRAINING_STEP)
        table.add_row(dtype, *row(measured(case, options.layers, options.rounds)))
        quiet.look()
    console = Console(width=110)
    console.print(
        f"{batch}x{length}, {options.layers} layers, ms a training step, "
        f"{torch.get_num_threads()} threads"
    )
    console.print(table)
    if warning := quiet.warning():
        console.print(warning)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
