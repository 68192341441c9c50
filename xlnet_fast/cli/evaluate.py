"""``xlnet-fast evaluate``."""

from __future__ import annotations

import json

from xlnet_fast.cli.options import command_of
from xlnet_fast.train.finetune import EvaluateOptions
from xlnet_fast.train.finetune.evaluation_options import GROUPS
from xlnet_fast.train.shared.requirements import require_packages


def run_evaluate(options: EvaluateOptions) -> None:
    """Metrics to standard output, as a table or as JSON; all else to standard error."""
    options.check()
    require_packages()
    from rich.console import Console

    from xlnet_fast.train.finetune import evaluate
    from xlnet_fast.train.finetune.outputs import print_results

    result = evaluate(options)
    if options.json:
        facts = {"task": result.task, "rows": result.rows}
        print(json.dumps({**facts, **result.metrics, **result.details}, indent=1))
    else:
        heading = f"{result.task}, {result.rows:,} rows of {options.data}:"
        print_results(Console(), {"value": result.metrics}, heading)
    if options.output is not None and not options.json:
        print(f"written: {options.output}")


evaluate_command = command_of(
    EvaluateOptions,
    run_evaluate,
    "Compare the answers of a fine-tuned XLNet with the labels of data: metrics, plots.",
    GROUPS,
)
