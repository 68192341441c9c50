"""Writing a file or a folder so that a reader, or a kill, meets the old or the whole new one."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which is made; renamed to `path` if nothing was raised.

    What a link leads to is replaced, not the link.

    Raises:
        OSError: it cannot be written; the old file is as it was, and no part of the new one stays.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A new, temporary folder beside `path`; it takes that name if nothing was raised.

    A folder that was there is then gone, with all that was in it.

    Raises:
        OSError: it cannot be written; the old folder is as it was, and nothing of the new stays.
    """
    path = Path(os.path.realpath(path))
    folder = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(folder, ignore_errors=True)  # of a process of this number that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
        if path.exists():
            os.replace(path, old)
        os.replace(folder, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, as :func:`written_whole` does, and raise as it does.

    A device or a pipe, which nothing may be put in the place of, is written to.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
