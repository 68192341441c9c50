"""How far a run over records is: a bar on a terminal, else a line now and then; both on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xlnet_fast.builder.progress import QUIET_S


class RecordProgress:
    """Counts records; to be entered."""

    def __init__(
        self,
        total: int,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        words: tuple[str, str, str] = ("answering", "answered", "records"),
    ) -> None:
        """``total`` records, of which an earlier run answered ``done``.

        ``words`` say what is going on, what is done, and with what.
        """
        doing, self._verb, self._unit = words
        self._total, self._done, self._before = total, done, done
        self._console, self._clock = console or Console(stderr=True), clock
        self._began_s = self._last_s = clock()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(doing),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, speed="")

    def __enter__(self) -> RecordProgress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, records: int) -> None:
        """So many more are answered."""
        self._done += records
        now = self._clock()
        speed = (self._done - self._before) / max(now - self._began_s, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{speed:.3g} {self._unit}/s")
        elif now - self._last_s >= QUIET_S:
            self._last_s = now
            left = timedelta(seconds=round((self._total - self._done) / max(speed, 1e-9)))
            self._console.print(
                f"{self._verb} {self._done:,} of {self._total:,} {self._unit}, "
                f"{speed:.3g} {self._unit}/s, {left} left",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
