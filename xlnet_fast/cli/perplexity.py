"""``xlnet-fast perplexity``."""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial

import typer

from xlnet_fast.cli.generate import show_warning
from xlnet_fast.cli.options import command_of
from xlnet_fast.perplexity.options import GROUPS, STDOUT, PerplexityOptions

_NAMES = {"loss": "loss, nats per token", "peak_memory_mib": "peak memory, MiB"}
_WHOLE = ("tokens", "characters", "bytes", "unknown_tokens", "left_out_tokens")


def run_perplexity(options: PerplexityOptions) -> None:
    """Figures to standard output, all else to standard error; 128 + signal if stopped."""
    options.check()
    from xlnet_fast.perplexity.run import perplexity

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        result = perplexity(options, partial(print, file=sys.stderr))
    if str(options.output) == STDOUT:
        print(json.dumps(result.record(), indent=1, ensure_ascii=False))
    elif result.metrics:
        _print_table(result.metrics)
        if options.output is not None:
            print(f"written: {options.output}")
    if result.stopped_by is not None:
        done = int(result.metrics.get("tokens", 0))
        print(
            f"stopped by a signal, {done:,} of {result.of:,} tokens are foretold", file=sys.stderr
        )
        raise typer.Exit(128 + result.stopped_by)


def _print_table(metrics: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        shown = f"{value:,.0f}" if name in _WHOLE else f"{value:,.4f}"
        table.add_row(_NAMES.get(name, name.replace("_", " ")), shown)
    Console().print(table)


perplexity_command = command_of(
    PerplexityOptions,
    run_perplexity,
    "Measure how well a Transformer-XL or an XLNet foretells a text: loss, perplexity, bits.",
    GROUPS,
)
