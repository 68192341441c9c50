"""``xlnet-fast pretrain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from xlnet_fast.cli.options import command_of
from xlnet_fast.train.pretraining import PretrainOptions
from xlnet_fast.train.shared.requirements import require_packages

if TYPE_CHECKING:
    from xlnet_fast.train.pretraining import PretrainResult


def run_pretrain(options: PretrainOptions) -> None:
    """Pretrain, print what came of it, and exit with 128 + signal where one ended it."""
    options.check()
    require_packages()
    from xlnet_fast.train.pretraining import pretrain

    result = pretrain(options)
    if result.stopped_by is not None:
        print(f"stopped by a signal; go on from {result.model} with --resume")
        raise typer.Exit(128 + result.stopped_by)
    if is_main_process():
        _print(result)


def is_main_process() -> bool:
    """Whether this process prints, of those that ``torchrun`` started."""
    import os

    return int(os.environ.get("RANK", "0")) == 0


def _print(result: PretrainResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title="Pretraining")
    for name, value in result.metrics.items():
        table.add_row(name.replace("_", " "), f"{value:,.3f}".rstrip("0").rstrip("."))
    Console().print(table)
    print(f"model: {result.model}")


pretrain_command = command_of(
    PretrainOptions,
    run_pretrain,
    "Pretrain XLNet on text by permutation language modelling, or Transformer-XL by the next token "
    "(--arch transfo-xl), memory carried from step to step.",
)
