"""``xlnet-fast generate``."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from typing import Any

from xlnet_fast.cli.options import command_of
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate import GenerateOptions
from xlnet_fast.generate.options import GROUPS

_NAMES = {
    "ms_per_token": "ms per token, each step of a batch",
    "peak_memory_mib": "peak memory, MiB",
}


def run_generate(options: GenerateOptions) -> None:
    """Write texts to standard output, and what it took to standard error, out of their way."""
    options.check()
    from xlnet_fast.generate import generate

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            result = generate(options, partial(print, flush=True))
        except BrokenPipeError:  # whoever read the texts has enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except OSError as error:
            why = error.strerror or error
            raise ArgumentError(f"the texts could not be written: {why}") from error
    print_measures("Generation", result.metrics)
    if options.output is not None and str(options.output) != "-":
        print(f"texts: {options.output}")


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a sentence, without the line of code that made it."""
    print(f"warning: {message}", file=sys.stderr)


def print_measures(title: str, metrics: dict[str, float]) -> None:
    """A table on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)
    for name, value in metrics.items():
        shown = f"{value:,.3f}".rstrip("0").rstrip(".")
        table.add_row(_NAMES.get(name, name.replace("_", " ")), shown)
    Console(stderr=True).print(table)


generate_command = command_of(
    GenerateOptions,
    run_generate,
    "Write text with an XLNet or Transformer-XL: from prompts, greedily, by beams or by chance.",
    GROUPS,
)
