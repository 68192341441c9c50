"""A lock between processes that the system lets go when its holder dies."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from xlnet_fast.errors import BuildError

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


@contextmanager
def held(path: Path, deadline_s: float, on_wait: Callable[[], None]) -> Iterator[bool]:
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
        BuildError: the deadline passed, or the file system has no locks.
    """
    with open(path, "ab") as file:
        waited = False
        while not _taken(file, path):
            if time.monotonic() >= deadline_s:
                raise BuildError(
                    f"another process builds the extension and was not done in time (it holds the "
                    f"lock {path}); wait for it, or allow more seconds with --timeout"
                )
            if not waited:
                on_wait()
                waited = True
            time.sleep(POLL_S)
        try:
            yield waited
        finally:
            _unlock(file)


def _taken(file: IO[bytes], path: Path) -> bool:
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise BuildError(
            f"the file system of {path.parent} has no file locks ({error}); set XLNET_FAST_CACHE "
            f"to a folder on a local disk"
        ) from error
    return True
