"""The output folder of a fine-tuning run: what is in it, and whether a run may use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xlnet_fast.train.finetune.confusion import plot_confusion
from xlnet_fast.train.finetune.options import FinetuneOptions
from xlnet_fast.train.finetune.task import Report, Split, Task
from xlnet_fast.train.shared.callbacks import TIMINGS
from xlnet_fast.train.shared.plots import plot_losses
from xlnet_fast.train.shared.run_folder import (
    check_folder,
    check_same_run,
    prepare_folder,
    write_json,
    write_text,
)

RUN_FILE = "finetune.json"
_SHOWN_INPUTS = ("text", "text_pair", "tokens", "question", "stem")


def check_output(options: FinetuneOptions) -> None:
    """Look at the folder; nothing is made nor deleted.

    Raises:
        ArgumentError: it is in use and neither ``resume`` nor ``overwrite`` is set, or it cannot be
            written to.
    """
    check_folder(options.output, options.resume or options.overwrite)


def begin_output(options: FinetuneOptions, splits: Mapping[str, Split]) -> None:
    """Delete an earlier run if ``overwrite`` is set, and note what decides the results of this one.

    Called when all input is known to be good.

    Raises:
        ArgumentError: the run to go on with had other options or data, or is none of this command.
    """
    record = options.deciding()
    record |= {f"{name}_sha256": _digest(splits[name]) for name in ("train", "eval")}
    if options.resume:
        check_same_run(options.output / RUN_FILE, record)
    prepare_folder(options.output, options.resume, options.overwrite)
    write_json(options.output / RUN_FILE, record)


def _digest(split: Split) -> str:
    """Of the rows as the model sees them, labels included."""
    assert split.features is not None, "rows are encoded before a run begins"
    digest = hashlib.sha256()
    for batch in split.features.iter(1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()


def write_predictions(path: Path, split: Split, report: Report) -> None:
    """One JSON object a line, in the order of the data: what was asked, predicted, and right."""
    shown = {
        role: split.rows[split.columns[role]] for role in _SHOWN_INPUTS if role in split.columns
    }
    lines = [
        json.dumps(
            {**{role: values[i] for role, values in shown.items()}, **row}, ensure_ascii=False
        )
        for i, row in enumerate(report.rows)
    ]
    write_text(path, "\n".join(lines) + "\n")


def write_plots(
    folder: Path, task: Task, history: list[dict[str, Any]], report: Report, title: str
) -> None:
    """``loss.png``, ``confusion.png`` where the task has classes, and the report's own."""
    plot_losses(history, folder / "loss.png", title)
    write_report_plots(folder, task, report, title)


def write_report_plots(folder: Path, task: Task, report: Report, title: str) -> None:
    """``confusion.png`` where the task has classes, and the report's own."""
    for name, plot in report.plots.items():
        plot(folder / name, title)
    if report.confusion is not None:
        plot_confusion(report.confusion, task.labels, folder / "confusion.png", title)


def plain_metrics(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Without Trainer's prefix and its timings."""
    plain = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}
    return {name: value for name, value in plain.items() if not name.endswith(TIMINGS)}


def print_results(
    console: Console,
    results: Mapping[str, Mapping[str, float]],
    heading: str = "results of the best checkpoint:",
) -> None:
    """A table with a column for each split."""
    console.print(heading, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("metric")
    for name in results:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(metric for values in results.values() for metric in values):
        cells = (values.get(metric) for values in results.values())
        table.add_row(metric, *("" if value is None else f"{value:.4f}" for value in cells))
    console.print(table)
