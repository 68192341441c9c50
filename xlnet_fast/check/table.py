"""Verdicts as a table for a terminal, and where a check has got to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlnet_fast.builder.progress import Progress as Lines
from xlnet_fast.check.trial import Verdict

OnBatch = Callable[[str, int, int], None]
"""Hears which batch of which part begins: the part's name, the batch from 1 on, how many."""


@contextmanager
def progress(console: Console) -> Iterator[OnBatch]:
    """A spinner on a terminal, else lines on stderr where a part begins or lasts."""
    if console.is_terminal:
        with console.status("") as status:
            yield lambda part, batch, of: status.update(Text(f"{part}, batch {batch} of {of}"))
        return
    with Lines(lambda line: print(line, file=sys.stderr, flush=True)) as lines:

        def on_batch(part: str, batch: int, batches: int) -> None:
            if batch == 1:
                lines.say(f"checking {part}")
            else:
                lines.note(f"checking {part}, batch {batch} of {batches}")

        yield on_batch


def show(console: Console, title: str, verdicts: list[Verdict]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("computation", "device", "dtype", "backend"):
        table.add_column(column, no_wrap=True)
    for column in ("tensors", "error", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("tensor nearest to its bound", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    left_out: dict[str, None] = {}
    for v in verdicts:
        if v.status == "not run":
            left_out[f"{v.backend} on {v.device} was not run: {v.reason}"] = None
            continue
        numbers = [str(v.tensors), f"{v.error:.1e}", f"{v.bound:.1e}"] if v.tensors else ["-"] * 3
        style = "green" if v.status == "ok" else "bold red"
        cells = [v.computation, v.device, v.dtype, v.backend, *numbers, v.worst or "-"]
        table.add_row(*(Text(cell) for cell in cells), Text(v.status, style=style))
    console.print(table)
    for line in left_out:
        console.print(Text(line, style="dim"))
    failed = [v for v in verdicts if v.status == "FAILED"]
    for v in failed:
        where = f"{v.computation}, {v.device}, {v.dtype}, {v.backend}"
        console.print(Text(f"FAILED: {where}: {v.reason}", style="bold red"))
    passed = sum(v.status == "ok" for v in verdicts)
    cancelling = sum(v.cancelling for v in verdicts)
    if cancelling:
        words = "tensor is" if cancelling == 1 else "tensors are"
        console.print(Text(f"{cancelling} {words} inside by one rounding of every step."))
    console.print(
        Text(
            f"{passed} passed, {len(failed)} failed. Error: largest against float64; bound: twice "
            "that of Hugging Face's own code in the same dtype plus one rounding, of the result "
            "or, where terms cancel, of every step before it."
        )
    )
