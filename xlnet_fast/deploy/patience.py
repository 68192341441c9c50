"""Waiting for AWS, with a sign of life: a moving line on a terminal, now and then a line else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from xlnet_fast.errors import XLNetFastError

INTERVAL_S = 15.0
QUIET_S = 120.0
"""Off a terminal, after so long without a line one comes."""


class Overtime(XLNetFastError):
    """It took longer than one was ready to wait."""


def say(line: str) -> None:
    """A line of progress: on standard error, which results keep out of."""
    print(line, file=sys.stderr, flush=True)


def wait_for(
    what: str,
    ask: Callable[[], str],
    going_on: Callable[[str], bool],
    *,
    minutes: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Ask until the state is none of those that pass, and return it.

    Args:
        what: is waited for. ask: the state. going_on: whether it passes.
        minutes: after which ``Overtime`` is raised.
    """
    began = clock()
    with _sign() as show:
        said, said_at = "", began
        while True:
            state = ask()
            if not going_on(state):
                return state
            now = clock()
            if now - began > minutes * 60:
                raise Overtime(f"{what} is still {state} after {minutes:g} minutes")
            line = f"{what}: {state}, {now - began:.0f} s"
            if show is not None:
                show(line)
            elif state != said or now - said_at >= QUIET_S:
                say(line)
                said, said_at = state, now
            sleep(INTERVAL_S)


@contextlib.contextmanager
def _sign() -> Iterator[Any]:
    """A function that shows a line in place of the last one; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
