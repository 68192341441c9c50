"""A lock between processes that the system lets go when its holder dies."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xlnet_fast.errors import BuildError, XLNetFastError

POLL_S = 0.1
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


@dataclass(frozen=True)
class Purpose:
    """What a lock is for, as its errors say it.

    Attributes:
        doing: what its holder does. patience: how to wait longer. elsewhere: how to choose a file
            system with locks. error: what is raised.
    """

    doing: str = "builds the extension"
    patience: str = "allow more seconds with --timeout"
    elsewhere: str = "set XLNET_FAST_CACHE to a folder on a local disk"
    error: type[XLNetFastError] = BuildError


_BUILD = Purpose()


@contextmanager
def held(
    path: Path, deadline_s: float, on_wait: Callable[[], None], purpose: Purpose = _BUILD
) -> Iterator[bool]:
    """Hold the lock on the file `path`, which is made where it is missing and stays.

    It is the open file that is locked, not the file's existence: one left by a dead process holds
    nobody up.

    Args:
        path: a file in a folder that exists.
        deadline_s: by `time.monotonic`, when to give up.
        on_wait: called once if another process holds the lock.

    Yields:
        Whether another process held it before.

    Raises:
        BuildError: the deadline passed, or the file system has no locks; for another purpose its
            error.
    """
    with open(path, "ab") as file:
        waited = False
        while not _taken(file, path, purpose):
            if time.monotonic() >= deadline_s:
                raise purpose.error(
                    f"another process {purpose.doing} and was not done in time (it holds the "
                    f"lock {path}); wait for it, or {purpose.patience}"
                )
            if not waited:
                on_wait()
                waited = True
            time.sleep(POLL_S)
        try:
            yield waited
        finally:
            _unlock(file)


def _taken(file: IO[bytes], path: Path, purpose: Purpose) -> bool:
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise purpose.error(
            f"the file system of {path.parent} has no file locks ({error}); {purpose.elsewhere}"
        ) from error
    return True
