"""Progress bars while a run works, tables when it is done."""

from __future__ import annotations

from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from xlnet_fast.builder.progress import QUIET_S
from xlnet_fast.builder.progress import Progress as Lines

from .table import Table


def make_console() -> Console:
    """Return a console; into a file or pipe it is wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 240))


class Display:
    """One progress bar over all cases, with what is being measured beside it.

    Where there is no terminal, a line says what is being measured if nobody spoke for a while.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self._progress = Progress(
            TextColumn("[bold]bench"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._lines = Lines(self._print, quiet_s=QUIET_S)

    def set_total(self, cases: int) -> None:
        """Say how many cases there will be."""
        self._progress.update(self._task, total=cases)

    def step(self, text: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=text)
        self._lines.note(text)

    def advance(self) -> None:
        """Count one case as done."""
        self._progress.advance(self._task)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._lines.say(text)

    def _print(self, text: str) -> None:
        self._progress.console.print(Text(text))

    def __enter__(self) -> Display:
        self._progress.start()
        if not self.console.is_terminal:
            self._lines.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.console.is_terminal:
            self._lines.__exit__(kind, error, trace)
        self._progress.stop()


def print_table(console: Console, table: Table) -> None:
    """Print a summary table: speed-ups green, losses and red checks red."""
    rich_table = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1)
    )
    for i, name in enumerate(table.header):
        rich_table.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    for row in table.rows:
        rich_table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console.print(rich_table)
    for note in table.notes:
        console.print(Text(f"  {note}", style="dim"))
    console.print()


def _style(cell: str) -> str:
    if cell.endswith("slower") or cell.endswith("RED") or cell in ("red", "failed"):
        return "red"
    return "green" if cell.endswith("x") and cell[:1].isdigit() else ""
