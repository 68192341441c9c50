"""Lines of progress: a piece that is done, and what goes on where nobody speaks."""

from __future__ import annotations

import threading

import pytest

from xlnet_fast.builder.progress import Progress


class Lines(list):
    """Lines that can be waited for."""

    def __init__(self):
        super().__init__()
        self.came = threading.Condition()

    def __call__(self, line: str) -> None:
        with self.came:
            self.append(line)
            self.came.notify_all()

    def wait_for(self, count: int) -> list[str]:
        with self.came:
            assert self.came.wait_for(lambda: len(self) >= count, timeout=60), self
        return list(self)


def test_every_piece_that_is_done_is_said():
    lines = Lines()
    with Progress(lines, pieces=2) as progress:
        progress.say("compiling")
        with progress.piece("a.cpp"):
            pass
        with pytest.raises(ValueError), progress.piece("broken.cpp"):
            raise ValueError
        with progress.piece("b.cpp"):
            pass
    assert lines == ["compiling", "1 of 2: a.cpp (0 s)", "2 of 2: b.cpp (0 s)"]


def test_silence_is_broken_by_what_is_at_work():
    lines = Lines()
    with Progress(lines, quiet_s=0.02) as progress:
        with progress.piece("a.cu"), progress.piece("b.cu"):
            lines.wait_for(2)
        assert set(lines[:2]) == {"still at work on a.cu (0 s), b.cu (0 s)"}
        progress.note("waiting")
        lines.wait_for(len(lines) + 1)
    assert lines[-1] == "waiting, 0 s so far"
    assert not progress._thread.is_alive()


def test_who_speaks_is_not_interrupted():
    lines = Lines()
    with Progress(lines, quiet_s=60) as progress:
        progress.say("a line")
    assert lines == ["a line"]
