"""``xlnet-fast qualify``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from xlnet_fast.builder.progress import Progress as Lines
    from xlnet_fast.qualifier import Step


def qualify_command(
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or cuda:N; default: the first GPU if any.", show_default=False
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Begin nothing new after so many minutes.")] = 2.0,
    full: Annotated[
        bool, typer.Option("--full", help="More dtypes, head dims and larger calls.")
    ] = False,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="Qualify this backend alone; may be given several times.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the record here, for XLNET_FAST_QUALIFICATION, and not to the cache.",
            show_default=False,
        ),
    ] = None,
    shown: Annotated[
        Path | None,
        typer.Option(
            "--show",
            metavar="FILE",
            help="Run nothing: print the record in this file, and whether it counts here.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record in place of the table.")
    ] = False,
) -> None:
    """Prove the kernels on this machine and time them; backend "auto" then goes by the record."""
    from xlnet_fast.qualifier.run import run
    from xlnet_fast.qualifier.table import show, show_file

    if shown is not None:
        show_file(shown, as_json)
        return
    # Children are in sessions of their own: a plain end of this process would leave them a moment.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _progress() as progress:
        outcome = run(device, minutes, full, backend or None, out, progress)
    if as_json:
        print(outcome.record.to_json(), end="")
    else:
        show(outcome)
    raise typer.Exit(1 if outcome.bad else 0)


@contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, else one line for each op of each backend; on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        from xlnet_fast.builder.progress import Progress as Lines

        with Lines(lambda line: print(line, file=sys.stderr, flush=True)) as lines:
            yield _Groups(lines)
        return
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.update(
            task, total=step.total, completed=step.done, description=step.text
        )


class _Groups:
    """Says what comes next where the backend or the op is another one, or where it lasts."""

    def __init__(self, lines: Lines) -> None:
        self._lines, self._last = lines, ""

    def __call__(self, step: Step) -> None:
        group = " ".join(step.text.split(" ")[:2]) + (
            ", time" if step.text.endswith("time") else ""
        )
        if group != self._last:
            self._last = group
            text = step.text if "waiting" in step.text or "compiling" in step.text else group
            self._lines.say(text)
        else:
            self._lines.note(f"{step.text} ({step.done} of {step.total} steps)")
