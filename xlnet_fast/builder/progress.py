"""Lines of progress for work that takes minutes.

`setup.py` executes this file by its path, as it does `recipe.py`: nothing but the standard library,
and no name of the package.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

QUIET_S = 20.0
"""After so long without a line, one comes that says what goes on."""


class Progress:
    """Says each piece of work that is done, and what goes on where nobody spoke for a while.

    with Progress(print, pieces=2) as progress:
        with progress.piece("a.cpp"):
            ...

    Args:
        say: takes a line; called from any thread, one call at a time.
        pieces: how many there will be.
        quiet_s: seconds.
    """

    def __init__(self, say: Callable[[str], None], pieces: int = 0, quiet_s: float = QUIET_S):
        self._say, self._pieces, self._quiet_s = say, pieces, quiet_s
        self._lock, self._over = threading.RLock(), threading.Event()
        self._running: dict[str, float] = {}  # name -> when it began
        self._done, self._doing = 0, ""
        self._began_s = self._last_s = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def say(self, line: str) -> None:
        """Say a line now; it also says what goes on, until another does."""
        with self._lock:
            self._doing, self._last_s = line, time.monotonic()
            self._say(line)

    def note(self, doing: str) -> None:
        """What goes on now, to be said if it lasts."""
        with self._lock:
            self._doing = doing

    def expect(self, pieces: int) -> None:
        """How many pieces there will be."""
        self._pieces = pieces

    def begin(self, name: str) -> None:
        """A piece is at work."""
        with self._lock:
            self._running[name] = time.monotonic()

    def end(self, name: str, done: bool = True) -> None:
        """A piece ends; it is said where it is done."""
        with self._lock:
            took_s = time.monotonic() - self._running.pop(name)
            if done:
                self._done += 1
                self.say(f"{self._done} of {self._pieces}: {name} ({took_s:.0f} s)")

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """A piece from its begin to its end."""
        self.begin(name)
        done = False
        try:
            yield
            done = True
        finally:
            self.end(name, done)

    def _watch(self) -> None:
        wait_s = self._quiet_s
        while not self._over.wait(wait_s):
            with self._lock:
                wait_s = self._last_s + self._quiet_s - time.monotonic()
                if wait_s <= 0:
                    self._last_s, wait_s = time.monotonic(), self._quiet_s
                    if line := self._goes_on():
                        self._say(line)

    def _goes_on(self) -> str:
        now = time.monotonic()
        if not self._running:
            return self._doing and f"{self._doing}, {now - self._began_s:.0f} s so far"
        pieces = (f"{name} ({now - since:.0f} s)" for name, since in self._running.items())
        return f"still at work on {', '.join(pieces)}"
