"""``xlnet-fast finetune``."""

from __future__ import annotations

import typer

from xlnet_fast.cli.options import command_of
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.shared.requirements import require_packages


def run_finetune(options: FinetuneOptions) -> None:
    """Fine-tune; exit with 128 + signal where one ended it."""
    options.check()
    require_packages()
    from xlnet_fast.train.finetune import finetune

    result = finetune(options)
    if result.stopped_by is not None:
        print(f"stopped by a signal; go on with --resume and the same options: {result.output}")
        raise typer.Exit(128 + result.stopped_by)
    print(f"model: {result.model}")


finetune_command = command_of(
    FinetuneOptions,
    run_finetune,
    "Fine-tune XLNet: text and token classification, regression, questions, multiple choice.",
)
